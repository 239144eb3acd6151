// Work of a thread: one group of channels of one segment.
#pragma once

#include "kernels/linear_scan/plan.cuh"

namespace recgrela::cuda {

constexpr int kScanAhead = 8;  // rows that are loaded ahead

template <typename E>
struct ScanThread {
  static constexpr int N = kScanGroup<E>;
  Segment segment;  // shared by the threads of a run
  bool valid;       // false for a thread without a segment or channels
  int64_t row_block;
  int64_t channel;  // first float of the group
  int width;        // floats of the group that are in the row
  bool whole;       // all N floats exist and are aligned in every row

  // All threads of a block call it.
  __device__ explicit ScanThread(const ScanPlan& p) {
    Segment* const found = reinterpret_cast<Segment*>(dynamic_shared());
    row_block = blockIdx.x / p.columns;
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

  template <typename T>
  __device__ Packed<T, N> load(const RowMatrix& rows, int64_t row, bool wanted) const {
    if (!wanted) return {};
    const T* const from = static_cast<const T*>(rows.data) + row * rows.stride + channel;
    if (whole) return *reinterpret_cast<const Packed<T, N>*>(from);
    float values[N];
    load_each(from, width, values);
    return pack<T>(values);
  }
  template <typename T>
  __device__ void store(const RowMatrix& rows, int64_t row, const float (&values)[N]) const {
    store_row(static_cast<T*>(rows.data) + row * rows.stride + channel, width, whole, values);
  }
  // Loads a row of dense states, [.., row_width]; zeros if `states` is null.
  __device__ void load_state(const void* states, int64_t row, int64_t row_width, float (&state)[N]) const {
    load_each(static_cast<const float*>(states) + row * row_width + channel, states ? width : 0, state);
  }
  __device__ void store_state(void* states, int64_t row, int64_t row_width, const float (&state)[N]) const {
    store_row(static_cast<float*>(states) + row * row_width + channel, width, false, state);
  }

  // Calls use(row, load(row, true)) for the rows of the segment, from the last one if kReverse. load(row, false)
  // may return any value.
  template <bool kReverse, typename Load, typename Use>
  __device__ void for_each_row(Load load, Use use) const {
    const int64_t count = segment.end - segment.begin;
    auto row_of = [&](int64_t i) { return kReverse ? segment.end - 1 - i : segment.begin + i; };
    decltype(load(int64_t{0}, true)) ahead[kScanAhead];
#pragma unroll
    for (int i = 0; i < kScanAhead; ++i) ahead[i] = load(row_of(i), i < count);
#pragma unroll 1
    for (int64_t first = 0; first < count; first += kScanAhead) {
#pragma unroll
      for (int k = 0; k < kScanAhead; ++k) {
        const int64_t i = first + k;
        if (i < count) use(row_of(i), ahead[k]);
        ahead[k] = load(row_of(i + kScanAhead), i + kScanAhead < count);
      }
    }
  }
};

template <typename E>
struct LoadedRow {
  Packed<E, kScanGroup<E>> x, h;
  Packed<float, kScanGroup<E>> a;
};

// Coefficients of the current row: constant, or loaded with each row.
template <typename E, bool kPerStep>
struct Coefficients {
  static constexpr int N = kScanGroup<E>;
  float a[N];

  __device__ Coefficients(const ScanPlan& p, const ScanThread<E>& thread) {
    if constexpr (!kPerStep) thread.load_state(p.a.data, 0, p.width, a);
  }
  __device__ void load(const ScanPlan& p, const ScanThread<E>& thread, int64_t row, bool wanted,
                       LoadedRow<E>& to) const {
    if constexpr (kPerStep) to.a = thread.template load<float>(p.a, row, wanted);
  }
  __device__ void set(const LoadedRow<E>& row) {
    if constexpr (kPerStep) unpack(row.a, a);
  }
};

}  // namespace recgrela::cuda
