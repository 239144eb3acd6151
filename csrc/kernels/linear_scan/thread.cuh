// Work of a thread: one group of channels of one segment.
#pragma once

#include "kernels/common/row_batches.cuh"
#include "kernels/linear_scan/plan.cuh"

namespace recgrela::cuda {

// Rows of a batch whose loads take `words` registers a row.
__host__ __device__ constexpr int batch_rows(int words) {
  int rows = 8;
  while (rows > 1 && rows * words > RECGRELA_LINEAR_SCAN_BATCH_REGISTERS) rows /= 2;
  return rows;
}

template <bool kComplex>
struct ScanThread {
  static constexpr int N = kScanGroup<kComplex>;
  Segment segment;  // shared by the threads of a run
  bool valid;       // false for a thread without a segment or channels
  int64_t row_block;
  int64_t channel;  // first float of the group
  int width;        // floats of the group that are in the row
  bool whole;       // all N floats exist and are aligned in every row

  // All threads of a block call it.
  __device__ explicit ScanThread(const ScanPlan& p) {
    Segment* const found = reinterpret_cast<Segment*>(dynamic_shared());
    row_block = blockIdx.x / static_cast<unsigned>(p.columns);
    for (int run = threadIdx.x / 32; run < p.runs; run += kScanThreads / 32) {
      const int64_t slot = row_block * p.runs + run;
      if (slot >= p.segments.num_slots) break;
      const Segment s = find_segment(p.segments, slot);
      if (threadIdx.x % 32 == 0) found[run] = s;
    }
    __syncthreads();
    const int run = static_cast<int>(threadIdx.x) / p.block_groups;
    const int group =
        static_cast<int>(blockIdx.x % p.columns) * p.block_groups + static_cast<int>(threadIdx.x) % p.block_groups;
    channel = int64_t{group} * N;
    width = p.width - channel < N ? static_cast<int>(p.width - channel) : N;
    whole = p.aligned && width == N;
    valid = run < p.runs && group < p.groups && row_block * p.runs + run < p.segments.num_slots;
    segment = found[valid ? run : 0];
    valid = valid && segment.exists();
  }

  // The thread's group of a matrix, from `row` on.
  template <typename T, bool kReverse, bool kWhole>
  __device__ MovingRow<T, N, kReverse, kWhole> rows_from(const RowMatrix& rows, int64_t row) const {
    return {rows, row, channel, width};
  }
  // Loads a row of dense states, [.., row_width]; zeros if `states` is null.
  __device__ void load_state(const void* states, int64_t row, int64_t row_width, float (&state)[N]) const {
    load_each(static_cast<const float*>(states) + row * row_width + channel, states ? width : 0, state);
  }
  __device__ void store_state(void* states, int64_t row, int64_t row_width, const float (&state)[N]) const {
    store_row(static_cast<float*>(states) + row * row_width + channel, width, false, state);
  }
};

// Calls use(load()) for `count` rows in order. Whole groups are loaded in batches of kRows rows, after the rest of the
// division; for others, prefetch(rows) moves a later row to the L2 cache.
template <bool kWhole, int kRows, typename Load, typename Prefetch, typename Use>
__device__ void for_each_row(int64_t count, Load load, Prefetch prefetch, Use use) {
  if constexpr (kWhole) {
    RowBatches<kRows, decltype(load())> batches(count);
    const int rest = static_cast<int>(count % kRows);
#pragma unroll
    for (int k = 0; k + 1 < kRows; ++k)
      if (k < rest) batches.b[k] = load();
    batches.load_first(load);
#pragma unroll
    for (int k = 0; k + 1 < kRows; ++k)
      if (k < rest) use(batches.b[k]);
    batches.load_second(load);
    batches.use_all(load, [&](const auto& batch) {
#pragma unroll
      for (int k = 0; k < kRows; ++k) use(batch[k]);
    });
  } else {
#pragma unroll 1
    for (int64_t i = 0; i < count; ++i) {
      if (i + kPrefetchRows < count) prefetch(kPrefetchRows);
      use(load());
    }
  }
}

// Calls run(whole as a constant).
template <typename Thread, typename Run>
__device__ void dispatch_whole(const Thread& thread, Run run) {
  if (thread.whole) {
    run(std::true_type{});
  } else {
    run(std::false_type{});
  }
}

// Coefficients of the current row: constant, or loaded with each row.
template <int N, bool kPerStep>
struct Coefficients {
  float a[N];

  template <typename Thread>
  __device__ Coefficients(const ScanPlan& p, const Thread& thread) {
    if constexpr (!kPerStep) thread.load_state(p.a.data, 0, p.width, a);
  }
};

}  // namespace recgrela::cuda
