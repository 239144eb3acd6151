// Rows that the forward reads ahead: elements of a thread's channel, and tiles of B and C in shared memory.
#pragma once

#include "kernels/selective_scan/plan.cuh"

namespace recgrela::cuda {

constexpr int kScanRows = RECGRELA_SELECTIVE_SCAN_FORWARD_ROWS;  // of a group
constexpr int kTileParts = 4;                                    // rows of a tile that a thread loads
static_assert(kScanRows == 2 || kScanRows == 4);

// Rows of a segment in the order of a scan, from its last row to the first in reverse. Row i has the place i sizeof(E),
// negative in reverse: an address is the first row's plus the product of a place and a stride, which takes one
// instruction and, unlike pointers that move, no registers for each matrix.
template <typename E, bool kReverse>
struct ScanRows {
  static constexpr int kNext = kReverse ? -static_cast<int>(sizeof(E)) : static_cast<int>(sizeof(E));
  const int64_t first;  // among all rows
  const int end;        // place after the last row

  __device__ explicit ScanRows(const Segment& segment)
      : first(kReverse ? segment.end - 1 : segment.begin), end(static_cast<int>(segment.end - segment.begin) * kNext) {}

  __device__ static int place(int row) { return row * kNext; }
  __device__ bool holds(int place) const { return kReverse ? place > end : place < end; }
  // The place, or the last row's for places after it.
  __device__ int clamp(int place) const { return kReverse ? max(place, end - kNext) : min(place, end - kNext); }
  // Element of the first row in a column; null if the matrix is absent.
  __device__ E* column(const RowMatrix& rows, int column) const {
    return rows.data ? static_cast<E*>(rows.data) + first * rows.stride + column : nullptr;
  }
  __device__ static E* at(E* column, const RowMatrix& rows, int place) {
    return reinterpret_cast<E*>(reinterpret_cast<char*>(column) + multiply_wide(place, static_cast<int>(rows.stride)));
  }
};

// Tiles of rows of one or two matrices of [T, N] (B and C) in shared memory. Each thread loads its part of a tile into
// registers while the block uses the previous tile, and stores it into the other one of two buffers. Rows after the
// segment's last one repeat it.
template <typename E, int kWidth, int kMatrices, bool kReverse>
class RowTiles {
 public:
  static constexpr int kRowFloats = kMatrices * kWidth;  // [kMatrices, kWidth]: N rounded up, the padding is zero

  static __host__ __device__ int rows(int threads) { return threads / kWidth * kTileParts; }
  static __host__ __device__ size_t bytes(int threads) { return 2 * sizeof(float) * rows(threads) * kRowFloats; }

  // Starts to load the first tile.
  __device__ RowTiles(const SelectivePlan& p, const ScanRows<E, kReverse>& rows, const RowMatrix& first,
                      const RowMatrix& second)
      : rows_(rows),
        first_(first),
        second_(second),
        columns_{rows.column(first, column()), rows.column(second, column())},
        apart_(p.scan.threads / kWidth),
        row_(rows.place(static_cast<int>(threadIdx.x) / kWidth)),
        element_(static_cast<int>(threadIdx.x) / kWidth * kRowFloats + column()),
        loads_(column() < p.num_states && rows.end != 0) {
#pragma unroll
    for (int m = 0; m < kMatrices; ++m)
#pragma unroll
      for (E& x : loaded_[m]) x = from_float<E>(0.f);
    load();
  }

  // Begins with the next tile and returns its rows.
  __device__ const float* next() {
    float* const tile = reinterpret_cast<float*>(dynamic_shared()) + buffer_;
#pragma unroll
    for (int k = 0; k < kTileParts; ++k)
#pragma unroll
      for (int m = 0; m < kMatrices; ++m)
        tile[element_ + k * apart_ * kRowFloats + m * kWidth] = to_float(loaded_[m][k]);
    __syncthreads();
    load();
    buffer_ = apart_ * kTileParts * kRowFloats - buffer_;
    return tile;
  }

 private:
  __device__ static int column() { return static_cast<int>(threadIdx.x) % kWidth; }
  __device__ void load() {
#pragma unroll
    for (int k = 0; k < kTileParts; ++k, row_ += rows_.place(apart_))
#pragma unroll
      for (int m = 0; m < kMatrices; ++m)
        if (loads_) loaded_[m][k] = *rows_.at(columns_[m], m ? second_ : first_, rows_.clamp(row_));
  }

  const ScanRows<E, kReverse>& rows_;
  const RowMatrix &first_, &second_;
  E* const columns_[2];
  const int apart_;    // rows between two that a thread loads
  int row_;            // place of the thread's next one
  const int element_;  // the thread's first one of a tile
  const bool loads_;   // it loads a column of the matrices rather than padding
  int buffer_ = 0;     // where the next tile begins
  E loaded_[kMatrices][kTileParts];
};

}  // namespace recgrela::cuda
