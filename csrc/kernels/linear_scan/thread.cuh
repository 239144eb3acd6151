// Work of a thread: one group of channels of one segment.
#pragma once

#include "kernels/linear_scan/plan.cuh"

namespace recgrela::cuda {

// Rows of a batch whose loads take `words` registers a row.
template <bool kWhole>
constexpr int batch_rows(int words) {
  int rows = kWhole ? 8 : 2;
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

  // Loads a row of dense states, [.., row_width]; zeros if `states` is null.
  __device__ void load_state(const void* states, int64_t row, int64_t row_width, float (&state)[N]) const {
    load_each(static_cast<const float*>(states) + row * row_width + channel, states ? width : 0, state);
  }
  __device__ void store_state(void* states, int64_t row, int64_t row_width, const float (&state)[N]) const {
    store_row(static_cast<float*>(states) + row * row_width + channel, width, false, state);
  }
};

// The thread's group of a matrix, in a row that moves by one with each load or store: to the previous one if kReverse.
// kWhole: the group is whole.
template <typename T, int N, bool kReverse, bool kWhole>
struct MovingRow {
  T* group;
  int64_t step;
  int width;

  template <typename Thread>
  __device__ MovingRow(const RowMatrix& rows, const Thread& thread, int64_t row)
      : group(static_cast<T*>(rows.data) + row * rows.stride + thread.channel),
        step(kReverse ? -rows.stride : rows.stride),
        width(thread.width) {}

  __device__ auto load() {
    using Element = std::remove_const_t<T>;
    Packed<Element, N> packed;
    if constexpr (kWhole) {
      packed = *reinterpret_cast<const Packed<Element, N>*>(group);
    } else {
      float values[N];
      load_each(group, width, values);
      packed = pack<Element>(values);
    }
    group += step;
    return packed;
  }
  __device__ void store(const float (&values)[N]) {
    store_row(group, width, kWhole, values);
    group += step;
  }
};

// Calls use(load()) for `count` rows in order. Two batches of kRows rows are loaded ahead in turn: the loads of a batch
// have a scoreboard of their own, so that a warp waits for a batch while the loads of the next one continue.
template <int kRows, typename Load, typename Use>
__device__ void for_each_row(int64_t count, Load load, Use use) {
  decltype(load()) a[kRows], b[kRows];
  const int rest = static_cast<int>(count % kRows);
  int batches = static_cast<int>(count / kRows);
  auto load_batch = [&](auto& batch) {
#pragma unroll
    for (int k = 0; k < kRows; ++k) batch[k] = load();
  };
  auto use_batch = [&](const auto& batch) {
#pragma unroll
    for (int k = 0; k < kRows; ++k) use(batch[k]);
  };
#pragma unroll
  for (int k = 0; k + 1 < kRows; ++k)
    if (k < rest) b[k] = load();
  if (batches > 0) load_batch(a);
#pragma unroll
  for (int k = 0; k + 1 < kRows; ++k)
    if (k < rest) use(b[k]);
  if (batches > 1) load_batch(b);
#pragma unroll 1
  for (; batches > 0; batches -= 2) {
    use_batch(a);
    if (batches > 2) load_batch(a);
    if (batches == 1) break;
    use_batch(b);
    if (batches > 3) load_batch(b);
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
