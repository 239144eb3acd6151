// Rows that a thread reads and writes one after the other: pointers that move, and batches of rows that are loaded
// ahead.
#pragma once

#include <type_traits>

#include "kernels/common/packed.cuh"
#include "kernels/common/params.h"

namespace recgrela::cuda {

// A loop without batches starts to move a row to the L2 cache this many rows before it loads it.
constexpr int kPrefetchRows = 8;

// A group of N channels in a row that moves by one with each load or store: to the previous one if kReverse. The first
// `valid` channels exist; kWhole: all of them, aligned in every row.
template <typename T, int N, bool kReverse, bool kWhole>
struct MovingRow {
  T* group;
  int64_t step;
  int valid;

  __device__ MovingRow(const RowMatrix& rows, int64_t row, int64_t channel, int valid)
      : group(static_cast<T*>(rows.data) + row * rows.stride + channel),
        step(kReverse ? -rows.stride : rows.stride),
        valid(valid) {}

  __device__ auto load() {
    using Element = std::remove_const_t<T>;
    Packed<Element, N> packed;
    if constexpr (kWhole) {
      packed = *reinterpret_cast<const Packed<Element, N>*>(group);
    } else {
      float values[N];
      load_each(group, valid, values);
      packed = pack<Element>(values);
    }
    group += step;
    return packed;
  }
  // Starts to move the group of a later row to the L2 cache.
  __device__ void prefetch(int rows) const { prefetch_line(group + rows * step); }
  __device__ void store(const float (&values)[N], bool wanted = true) {
    if (wanted) store_row(group, valid, kWhole, values);
    group += step;
  }
};

// Two batches of kRows rows that are loaded ahead in turn: a warp waits once for both, and all loads of a batch are
// issued before anything waits for their addresses. load() returns the next row; use(batch) processes kRows rows.
template <int kRows, typename Row>
struct RowBatches {
  Row a[kRows], b[kRows];
  int left;  // whole batches that have not been used

  __device__ explicit RowBatches(int64_t rows) : left(static_cast<int>(rows / kRows)) {}

  template <typename Load>
  __device__ void load_first(Load load) {
    if (left > 0) load_all(a, load);
  }
  template <typename Load>
  __device__ void load_second(Load load) {
    if (left > 1) load_all(b, load);
  }
  template <typename Load, typename Use>
  __device__ void use_all(Load load, Use use) {
#pragma unroll 1
    for (; left > 0; left -= 2) {
      use(a);
      if (left > 2) load_all(a, load);
      if (left == 1) break;
      use(b);
      if (left > 3) load_all(b, load);
    }
  }

 private:
  template <typename Load>
  __device__ static void load_all(Row (&batch)[kRows], Load load) {
#pragma unroll
    for (int k = 0; k < kRows; ++k) batch[k] = load();
  }
};

}  // namespace recgrela::cuda
