// Tiles in the registers of a warp for the backward of heads of 64 and 128 channels: features, operands, and sums over
// rows.
#pragma once

#include <type_traits>

#include "kernels/gated_rela/wide/lane_rows.cuh"
#include "kernels/gated_rela/wide/tiles.cuh"

namespace recgrela::cuda {

// Zeros after the first n rows of a tile.
inline __device__ void keep_rows(Acc& a, int n) {
  if (n >= kTile) return;
  const int row = threadIdx.x % 32 / 4;
#pragma unroll
  for (int i = 0; i < 8; ++i)
    if (row + i / 2 % 2 * 8 >= n) a.x[i / 4][i % 4] = 0.f;
}

// phi(x) of a tile of n rows, zero after them.
template <typename E>
__device__ Acc features(const LaneRows<E>& rows, int n) {
  Acc f = unpack_rows(rows);
#pragma unroll
  for (int i = 0; i < 8; ++i) f.x[i / 4][i % 4] = phi(f.x[i / 4][i % 4]);
  keep_rows(f, n);
  return f;
}

// Operand M^T of M's parts.
template <typename E>
__device__ Split<E> transpose(const Split<E>& m) {
  Split<E> t;
#pragma unroll
  for (int p = 0; p < kParts<E>; ++p) t.part[p] = transpose(m.part[p]);
  return t;
}
// The same operand as B.
template <typename E>
__device__ RightSplit<E> as_right(const Split<E>& m) {
  RightSplit<E> right;
#pragma unroll
  for (int p = 0; p < kParts<E>; ++p)
#pragma unroll
    for (int i = 0; i < 4; ++i) right.r[p][i % 2][i / 2] = m.part[p].r[i];
  return right;
}

// Rows as an operand A, rounded to E unless that is float32.
template <typename E>
__device__ Split<E> to_split(const LaneRows<E>& rows) {
  if constexpr (sizeof(E) == 4) {
    return to_split<E>(unpack_rows(rows));
  } else {
    return {{{rows.x[0][0], rows.x[1][0], rows.x[0][1], rows.x[1][1]}}};
  }
}

// A tile in registers from one part of a chunk's work to the next, rounded to E.
template <typename E>
struct alignas(16) KeptTile {
  std::conditional_t<sizeof(E) == 4, Acc, Operand<E>> x;

  KeptTile() = default;
  __device__ explicit KeptTile(const Acc& a) {
    if constexpr (sizeof(E) == 4)
      x = a;
    else
      x = to_operand<E>(a);
  }
  __device__ Split<E> split() const {
    if constexpr (sizeof(E) == 4)
      return to_split<E>(x);
    else
      return {{x}};
  }
  __device__ Acc acc() const {
    if constexpr (sizeof(E) == 4) {
      return x;
    } else {
      Acc a;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float2 pair = unpack2<E>(x.r[i]);
        a.x[i / 2][i % 2 * 2] = pair.x, a.x[i / 2][i % 2 * 2 + 1] = pair.y;
      }
      return a;
    }
  }
};

// (lower triangle of ones) times a tile: sums over its rows up to each row.
template <typename E>
__device__ Acc running_sums(const Split<E>& tile) {
  Acc lower, sums;
#pragma unroll
  for (int i = 0; i < 8; ++i) lower.x[i / 4][i % 4] = 1.f;
  keep_lower(lower);
  const Operand<Part<E>> ones = to_operand<Part<E>>(lower);
  const RightSplit<E> rows = as_right(transpose(tile));
#pragma unroll
  for (int p = kParts<E> - 1; p >= 0; --p)
#pragma unroll
    for (int j = 0; j < 2; ++j) mma16816<Part<E>>(sums.x[j], ones.r, rows.r[p][j]);
  return sums;
}

}  // namespace recgrela::cuda
