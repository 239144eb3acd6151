// Matrices in shared memory as operands of tensor-core products, for heads of 64 and 128 channels.
//
// A matrix has one block per 16 channels, a block has tiles of 16 rows, and a tile has one plane per part of its
// numbers (split.cuh): three bf16 parts of a float32 number, or the 16-bit number itself. A row of a plane is 16
// numbers, 32 bytes, next to the row before it; so are the rows of a whole block of 16-bit numbers. The halves of a row
// are swapped where row / 4 is odd, so that eight rows from any row on have different banks: ldmatrix and stmatrix meet
// no conflict, and the address of a tile is a constant plus an offset of the lane.
#pragma once

#include "kernels/common/split.cuh"
#include "kernels/gated_rela/plan.cuh"

namespace recgrela::cuda {

// Element of a plane at a row and at a column that is a multiple of 8.
inline __device__ int swizzled(int row, int column) { return row * kTile + (column ^ (row >> 2 & 1) * 8); }

// Offsets of a lane in a tile.
struct TileLane {
  int lane;
  int along, across;  // rows that ldmatrix reads: tiles of rows by rows, and of rows by columns
  int pair;           // the lane's elements in tile.cuh's layout

  __device__ explicit TileLane(unsigned lane)
      : lane(lane),
        along(swizzled(lane % 16, lane / 16 * 8)),
        across(swizzled(lane % 8 + lane / 16 * 8, lane / 8 % 2 * 8)),
        pair(swizzled(lane / 4, 0) + lane % 4 * 2) {}
};

// Operand A of a tile: M[i][k] = tile[i][k], or tile[k][i] if kTranspose.
template <typename E, bool kTranspose>
__device__ Split<E> load_left(const Part<E>* tile, const TileLane& lane) {
  Split<E> m;
#pragma unroll
  for (int p = 0; p < kParts<E>; ++p)
    load_matrices<kTranspose>(m.part[p].r, tile + p * kPackedTile + (kTranspose ? lane.across : lane.along));
  return m;
}

// Operand B of a tile: M[i][k] = tile[i][k], or tile[k][i] if kTranspose.
template <typename E, bool kTranspose>
__device__ RightSplit<E> load_right(const Part<E>* tile, const TileLane& lane) {
  RightSplit<E> m;
#pragma unroll
  for (int p = 0; p < kParts<E>; ++p) {
    uint32_t r[4];
    load_matrices<kTranspose>(r, tile + p * kPackedTile + (kTranspose ? lane.along : lane.across));
#pragma unroll
    for (int i = 0; i < 4; ++i) m.r[p][i / 2][i % 2] = r[i];
  }
  return m;
}

// Stores a tile; other lanes may read it after __syncwarp.
template <typename E>
__device__ void store_split(Part<E>* tile, const Split<E>& m, const TileLane& lane) {
#pragma unroll
  for (int p = 0; p < kParts<E>; ++p) store_matrices_at(tile + p * kPackedTile, lane.along, lane.pair, m.part[p].r);
}
template <typename E>
__device__ void store_tile(Part<E>* tile, const Acc& a, const TileLane& lane) {
  store_split<E>(tile, to_split<E>(a), lane);
}

// Operand B[n][k] of a sum with rows n and columns k, multiplied by `factor` if 16-bit numbers might not hold it.
template <typename E>
__device__ RightSplit<E> to_right(const Acc& a, float factor) {
  RightSplit<E> m;
#pragma unroll
  for (int j = 0; j < 2; ++j)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float* const x = a.x[half] + 2 * j;
      const Split2<E> split(kScaled<E> ? factor * x[0] : x[0], kScaled<E> ? factor * x[1] : x[1]);
#pragma unroll
      for (int p = 0; p < kParts<E>; ++p) m.r[p][j][half] = split.part[p];
    }
  return m;
}

// Rows of float32 in the place of their parts: 16 channels, 64 bytes a row. Vectors of 16 bytes are permuted so that
// four rows of pairs have different banks.
inline __device__ int swizzled_vector(int row, int vector) { return (vector ^ (row & 2) ^ (row >> 2 & 1)) * 4; }

// A matrix of kRows rows. Rows as they were copied are in the place of the parts that replace them, tile by tile, so
// that the warp which owns 16 channels can convert them without waiting for others.
template <typename E, int kHead, int kRows>
struct TileMatrix {
  static constexpr int kPlanes = kParts<E> * kPackedTile;  // numbers of a tile
  static constexpr int kBlock = kRows * kPlanes / kTile;

  alignas(16) Part<E> x[kHead / kTile * kBlock];

  // Row tile r at channel tile t.
  __device__ Part<E>* tile(int t, int r) { return x + t * kBlock + r * kPlanes; }

  // Element of a copied row, one of the first 16, at a channel that begins a vector of 16 bytes; and the distance to
  // the row `rows` after it, a multiple of 8.
  __device__ E* raw(int row, int channel) {
    E* const block = reinterpret_cast<E*>(x + channel / kTile * kBlock);
    if constexpr (sizeof(E) == 4) return block + row * kTile + swizzled_vector(row, channel % kTile / 4);
    return block + swizzled(row, channel % kTile);
  }
  static __device__ constexpr int distance(int rows) {
    return rows / kTile * (kPlanes * int{sizeof(Part<E>)} / int{sizeof(E)}) + rows % kTile * kTile;
  }

  // Elements of a tile as they were copied, in tile.cuh's layout.
  __device__ Acc load_raw(int t, int r, const TileLane& at) {
    Acc a;
    if constexpr (sizeof(E) == 4) {
      const int row = at.lane / 4;
      const float* const rows = reinterpret_cast<const float*>(tile(t, r)) + row * kTile;
      const int first = swizzled_vector(row, at.lane % 4 / 2) + at.lane % 2 * 2;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float2 pair = load2(rows + i % 2 * 8 * kTile + (first ^ i / 2 * 8));
        a.x[i / 2][i % 2 * 2] = pair.x, a.x[i / 2][i % 2 * 2 + 1] = pair.y;
      }
    } else {
      uint32_t m[4];
      load_matrices<false>(m, tile(t, r) + at.along);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float2 pair = unpack2<E>(m[i]);
        a.x[i / 2][i % 2 * 2] = pair.x, a.x[i / 2][i % 2 * 2 + 1] = pair.y;
      }
    }
    return a;
  }
};

// A matrix of kRows rows of float32 as they were copied. 32 bytes of padding put four rows of pairs in different banks.
template <int kHead, int kRows>
struct FloatMatrix {
  static constexpr int kStride = kHead + 8;

  alignas(16) float x[kRows * kStride];

  __device__ float* raw(int row, int channel) { return x + row * kStride + channel; }
  static __device__ constexpr int distance(int rows) { return rows * kStride; }
};
template <typename E, int kHead, int kRows>
using RawMatrix = std::conditional_t<sizeof(E) == 4, FloatMatrix<kHead, kRows>, TileMatrix<E, kHead, kRows>>;

}  // namespace recgrela::cuda
