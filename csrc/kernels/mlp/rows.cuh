// The 16 rows of a warp as operands, for the kernels by rows.
#pragma once

#include "kernels/common/dropout.cuh"
#include "kernels/mlp/plan.cuh"

namespace recgrela::cuda {

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
      for (int i = 0; i < 4; ++i) {
        const int j = i / 2, h = i % 2, column = k * kTile + 8 * j;
        float2 x = make_float2(0.f, 0.f);
        if (8 * h < left && k * kTile < width) x = load2(from + 8 * h * rows.stride + column);
        if (drop.active()) {
          const uint32_t element = index + column + 8 * h * width;
          x.x *= drop.factor(element), x.y *= drop.factor(element + 1);
        }
        if constexpr (K::kRowsInRegisters) {
          set_pair(tiles_[k], i, x.x, x.y);
        } else {
          const Split2<E> split(x.x, x.y);
          Part<E>* const to = memory_ + (lane / 4 + 8 * h) * K::kStride + column + tile_col(lane, 0, 0);
#pragma unroll
          for (int p = 0; p < kParts<E>; ++p) *reinterpret_cast<uint32_t*>(to + p * kPartSize) = split.part[p];
        }
      }
    if constexpr (!K::kRowsInRegisters) __syncwarp();
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
      for (int i = 0; i < 4; ++i) {
        const int j = i / 2, h = i % 2, column = k * kTile + 8 * j;
        const uint32_t element = index + column + 8 * h * width;
        float a = x[k].x[j][2 * h], b = x[k].x[j][2 * h + 1];
        if (drop.active()) a *= drop.factor(element), b *= drop.factor(element + 1);
        if (8 * h < left) store2(to + 8 * h * rows.stride + column, a, b);
      }
    }
    limit_overlap<E>();
  }
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
