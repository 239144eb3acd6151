// The 16 rows of a warp as operands, for the kernels by rows.
#pragma once

#include "kernels/common/dropout.cuh"
#include "kernels/mlp/plan.cuh"

namespace recgrela::cuda {

// Dropout of the columns c, c + 1 (a) and c + 8, c + 9 (b) of a lane, where c has the index `index`. Rows have a
// multiple of 16 columns.
inline __device__ void drop_columns(const DropoutHash& drop, uint32_t index, float2& a, float2& b) {
  bool first, second;
  drop.keep_pair(index, first, second);
  a.x *= first ? drop.scale() : 0.f, b.x *= second ? drop.scale() : 0.f;
  drop.keep_pair(index + 1, first, second);
  a.y *= first ? drop.scale() : 0.f, b.y *= second ? drop.scale() : 0.f;
}

// Operands M[row][column] of 16 rows of kTiles tiles, in registers or in shared memory. Rows after the last and columns
// after the width are zeros.
template <typename E, int kTiles>
class MlpRows {
  using K = MlpKernels<E, kTiles>;

 public:
  // Takes the block's memory from `shared`, if the rows are there.
  __device__ MlpRows(unsigned char*& shared, int warps) {
    if constexpr (!K::kRowsInRegisters) {
      memory_ = reinterpret_cast<Part<E>*>(shared) + static_cast<int>(threadIdx.x) / 32 * kParts<E> * kPartSize;
      shared += warps * kParts<E> * kPartSize * sizeof(Part<E>);
    }
  }

  // Loads the rows from `first` on. All lanes of the warp call it.
  __device__ void load(const RowMatrix& rows, int first, int num_rows, int width, const DropoutHash& drop) {
    const int lane = threadIdx.x % 32;
    if constexpr (!K::kRowsInRegisters) __syncwarp();  // the previous rows have been read
    const int left = num_rows - first - lane / 4;
    const E* const from = static_cast<const E*>(rows.data) +
                          int64_t{static_cast<uint32_t>(first + lane / 4)} * rows.stride + tile_col(lane, 0, 0);
    const uint32_t index =
        static_cast<uint32_t>(first + lane / 4) * static_cast<uint32_t>(width) + tile_col(lane, 0, 0);
#pragma unroll
    for (int k = 0; k < kTiles; ++k)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float2 x[2] = {};  // the lane's columns c, c + 1 and c + 8, c + 9
        if (8 * h < left && k * kTile < width) {
#pragma unroll
          for (int j = 0; j < 2; ++j) x[j] = load2(from + 8 * h * rows.stride + k * kTile + 8 * j);
        }
        if (drop.active()) drop_columns(drop, index + k * kTile + 8 * h * width, x[0], x[1]);
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          if constexpr (K::kRowsInRegisters) {
            set_pair(tiles_[k], 2 * j + h, x[j].x, x[j].y);
          } else {
            const Split2<E> split(x[j].x, x[j].y);
            const int column = k * kTile + tile_col(lane, j, 0);
            Part<E>* const to = memory_ + (lane / 4 + 8 * h) * K::kStride + column;
#pragma unroll
            for (int p = 0; p < kParts<E>; ++p) *reinterpret_cast<uint32_t*>(to + p * kPartSize) = split.part[p];
          }
        }
      }
    if constexpr (!K::kRowsInRegisters) __syncwarp();
  }

  // Sets register `pair` of a tile: two elements of one row of the lane.
  __device__ void set(int tile, int pair, float x, float y) {
    static_assert(K::kRowsInRegisters);
    set_pair(tiles_[tile], pair, x, y);
  }

  __device__ Split<E> operator[](int tile) const {
    if constexpr (K::kRowsInRegisters) {
      return tiles_[tile];
    } else {
      return load_split<E, false>(memory_ + tile * kTile, K::kStride, kPartSize);
    }
  }

 private:
  static constexpr int kPartSize = kTile * K::kStride;
  Split<E> tiles_[K::kRowsInRegisters ? kTiles : 1];
  Part<E>* memory_ = nullptr;
};

// Stores 16 rows from `first` on, without rows after the last and columns after the width.
template <typename E, int kTiles>
__device__ void store_mlp_rows(const Acc (&x)[kTiles], const RowMatrix& rows, int first, int num_rows, int width,
                               const DropoutHash& drop) {
  const int lane = threadIdx.x % 32, left = num_rows - first - lane / 4;
  E* const to = static_cast<E*>(rows.data) + int64_t{static_cast<uint32_t>(first + lane / 4)} * rows.stride +
                tile_col(lane, 0, 0);
  const uint32_t index = static_cast<uint32_t>(first + lane / 4) * static_cast<uint32_t>(width) + tile_col(lane, 0, 0);
#pragma unroll
  for (int k = 0; k < kTiles; ++k) {
    if (k * kTile < width) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float2 out[2];
#pragma unroll
        for (int j = 0; j < 2; ++j) out[j] = make_float2(x[k].x[j][2 * h], x[k].x[j][2 * h + 1]);
        if (drop.active()) drop_columns(drop, index + k * kTile + 8 * h * width, out[0], out[1]);
#pragma unroll
        for (int j = 0; j < 2; ++j)
          if (8 * h < left) store2(to + 8 * h * rows.stride + k * kTile + 8 * j, out[j].x, out[j].y);
      }
    }
    limit_overlap<E>();
  }
}

// Loads and stores the rows of a step of the forward.
template <typename E, int kTiles>
__device__ void load_step(const MlpPlan& p, int row, MlpRows<E, kTiles>& x) {
  x.load(p.x, row, p.rows, p.in, DropoutHash(Dropout{}));
}
template <typename E, int kTiles>
__device__ void store_step(const MlpPlan& p, int row, const Acc (&y)[kTiles]) {
  const DropoutHash drop2(p.dropout2);  // read again for each step, to save registers
  store_mlp_rows<E>(y, p.y, row, p.rows, p.out, drop2);
}

// Values of the hidden columns c, c + 1, c + 8 and c + 9 of a lane, in all rows of a tile.
inline __device__ Acc broadcast_columns(const float* columns) {
  Acc a;
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    const float2 pair = *reinterpret_cast<const float2*>(columns + tile_col(threadIdx.x % 32, j, 0));
    a.x[j][0] = a.x[j][2] = pair.x, a.x[j][1] = a.x[j][3] = pair.y;
  }
  return a;
}

}  // namespace recgrela::cuda
