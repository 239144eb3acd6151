// Products of 16 x 16 tiles by one warp, on tensor cores.
//
// Sums and operands share one layout: lane l holds rows l / 4 and l / 4 + 8 of a tile at the columns c, c + 1, c + 8
// and c + 9, where c = 2 (l % 4). mma.m16n8k16 takes and returns this layout, so that a sum can be an operand of the
// next product without moving. TF32's k8 fragments have another layout, which permutes the inner dimension of both
// operands in the same way. An operand is a matrix M[i][k], where k is the inner dimension: A as it is and B
// transposed, so that D[m][n] = sum_k A[m][k] B[n][k].
//
// A float32 operand is split into two TF32 numbers, and three of the four products are added, for the accuracy of
// float32. Tensor cores truncate their sums, so that float32 sums over many tiles use ordinary additions. 16-bit
// operands are used directly, and a float32 sum that becomes an operand is rounded.
#pragma once

#include "kernels/common/device.cuh"

namespace recgrela::cuda {

constexpr int kTile = 16;

// x[j][e]: row l / 4 + 8 (e / 2), column 2 (l % 4) + e % 2 + 8 j.
struct Acc {
  float x[2][4] = {};
};

inline __device__ int tile_row(int lane, int e) { return lane / 4 + 8 * (e / 2); }
inline __device__ int tile_col(int lane, int j, int e) { return 2 * (lane % 4) + e % 2 + 8 * j; }

template <typename E>
struct Operand {
  uint32_t r[4];
};
template <>
struct Operand<float> {
  uint32_t high[2][4], low[2][4];
};

// Rounds to the upper 19 bits.
inline __device__ uint32_t round_tf32(float x) { return (float_bits(x) + 0x1000u) & 0xffffe000u; }

inline __device__ void set_element(Operand<float>& operand, int j, int e, float x) {
  operand.high[j][e] = round_tf32(x);
  operand.low[j][e] = float_bits(x - bits_float(operand.high[j][e]));
}

// Converts a sum to an operand, rounded to E unless that is float32.
template <typename E>
__device__ Operand<E> to_operand(const Acc& a) {
  Operand<E> operand;
  if constexpr (sizeof(E) == 4) {
#pragma unroll
    for (int j = 0; j < 2; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e) set_element(operand, j, e, a.x[j][e]);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) operand.r[i] = pack2<E>(a.x[i / 2][i % 2 * 2], a.x[i / 2][i % 2 * 2 + 1]);
  }
  return operand;
}

// Loads M[i][k] = tile[i * stride + k], or tile[k * stride + i] if kTranspose; rows of the tile are aligned to 16
// bytes. kRight: the operand is used as B, whose registers have another order; either way the result is the same.
template <typename E, bool kTranspose, bool kRight = false>
__device__ Operand<E> load_operand(const E* tile, int stride) {
  Operand<E> operand;
  const int lane = threadIdx.x % 32;
  if constexpr (sizeof(E) == 4) {
#pragma unroll
    for (int j = 0; j < 2; ++j)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int i = tile_row(lane, 2 * h), k = tile_col(lane, j, 0);
        if constexpr (kTranspose) {
          set_element(operand, j, 2 * h, tile[k * stride + i]);
          set_element(operand, j, 2 * h + 1, tile[(k + 1) * stride + i]);
        } else {
          const float2 pair = *reinterpret_cast<const float2*>(tile + i * stride + k);
          set_element(operand, j, 2 * h, pair.x);
          set_element(operand, j, 2 * h + 1, pair.y);
        }
      }
  } else {
    const int low = 8 * (lane / 8 % 2), high = 8 * (lane / 16), r = lane % 8;
    const int i = kRight ? high : low, k = kRight ? low : high;
    uint32_t m[4];
    load_matrices<kTranspose>(m, kTranspose ? tile + (k + r) * stride + i : tile + (i + r) * stride + k);
    operand.r[0] = m[0], operand.r[1] = m[kRight ? 2 : 1], operand.r[2] = m[kRight ? 1 : 2], operand.r[3] = m[3];
  }
  return operand;
}

// Adds columns 8 j .. 8 j + 7 of A B^T to d, or overwrites d unless kAdd.
template <bool kAdd, typename E>
__device__ void mma_columns(float (&d)[4], const Operand<E>& a, const Operand<E>& b, int j) {
  float part[4] = {};
  if constexpr (sizeof(E) == 4) {
#pragma unroll
    for (int s = 0; s < 2; ++s) {
      const uint32_t ah[4] = {a.high[s][0], a.high[s][2], a.high[s][1], a.high[s][3]};
      const uint32_t al[4] = {a.low[s][0], a.low[s][2], a.low[s][1], a.low[s][3]};
      const uint32_t bh[2] = {b.high[s][2 * j], b.high[s][2 * j + 1]};
      const uint32_t bl[2] = {b.low[s][2 * j], b.low[s][2 * j + 1]};
      mma1688_tf32(part, al, bh);
      mma1688_tf32(part, ah, bl);
      mma1688_tf32(part, ah, bh);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) d[i] = kAdd ? d[i] + part[i] : part[i];
  } else {
    const uint32_t b2[2] = {b.r[j], b.r[2 + j]};
    if constexpr (kAdd) {
      mma16816<E>(d, a.r, b2);
    } else {
      mma16816<E>(part, a.r, b2);
#pragma unroll
      for (int i = 0; i < 4; ++i) d[i] = part[i];
    }
  }
}

// d += A B^T, or d = A B^T if kFirst.
template <bool kFirst = false, typename E>
__device__ void mma(Acc& d, const Operand<E>& a, const Operand<E>& b) {
  mma_columns<!kFirst>(d.x[0], a, b, 0);
  mma_columns<!kFirst>(d.x[1], a, b, 1);
}
inline __device__ void scale(Acc& a, float factor) {
#pragma unroll
  for (int i = 0; i < 8; ++i) a.x[i / 4][i % 4] *= factor;
}
// One value for each of this lane's rows, l / 4 and l / 4 + 8.
struct RowPair {
  float x[2] = {};
};
inline __device__ void scale_rows(Acc& a, const RowPair& factor) {
#pragma unroll
  for (int i = 0; i < 8; ++i) a.x[i / 4][i % 4] *= factor.x[i / 2 % 2];
}
// Keeps the elements on and below the diagonal (lower) or on and above it (upper); zeros elsewhere.
inline __device__ void keep_lower(Acc& a) {
  const int row = threadIdx.x % 32 / 4, col = threadIdx.x % 4 * 2;
#pragma unroll
  for (int e = 0; e < 2; ++e) {
    if (col + e > row) a.x[0][e] = a.x[1][2 + e] = 0.f;
    a.x[1][e] = 0.f;
  }
}
inline __device__ void keep_upper(Acc& a) {
  const int row = threadIdx.x % 32 / 4, col = threadIdx.x % 4 * 2;
#pragma unroll
  for (int e = 0; e < 2; ++e) {
    if (col + e < row) a.x[0][e] = a.x[1][2 + e] = 0.f;
    a.x[0][2 + e] = 0.f;
  }
}
inline __device__ void add_scaled(Acc& d, const Acc& a, float factor) {
#pragma unroll
  for (int i = 0; i < 8; ++i) d.x[i / 4][i % 4] += factor * a.x[i / 4][i % 4];
}

// factor * A as an operand, rounded to E unless that is float32.
template <typename E>
__device__ Operand<E> to_operand(const Acc& a, float factor) {
  Acc x = a;
  scale(x, factor);
  return to_operand<E>(x);
}

// Operand M^T of 16-bit numbers.
template <typename E>
__device__ Operand<E> transpose(const Operand<E>& m) {
  static_assert(sizeof(E) == 2);
  return {{transpose_matrix(m.r[0]), transpose_matrix(m.r[2]), transpose_matrix(m.r[1]), transpose_matrix(m.r[3])}};
}

// Tiles in memory in the order in which lanes hold them: kPackedTile elements in vectors of 16 bytes.
constexpr int kPackedTile = kTile * kTile;

template <typename E>
__device__ void store_packed(E* tile, const Acc& a, float factor) {
  const int lane = threadIdx.x % 32;
  if constexpr (sizeof(E) == 4) {
#pragma unroll
    for (int j = 0; j < 2; ++j)
      reinterpret_cast<float4*>(tile)[32 * j + lane] =
          make_float4(a.x[j][0] * factor, a.x[j][1] * factor, a.x[j][2] * factor, a.x[j][3] * factor);
  } else {
    const Operand<E> m = to_operand<E>(a, factor);
    reinterpret_cast<uint4*>(tile)[lane] = make_uint4(m.r[0], m.r[1], m.r[2], m.r[3]);
  }
}

// Loads the operand of a packed tile. Other warps may have stored it before a barrier.
template <typename E>
__device__ Operand<E> load_packed(const E* tile) {
  const int lane = threadIdx.x % 32;
  Operand<E> operand;
  if constexpr (sizeof(E) == 2) {
    const uint4 r = reinterpret_cast<const uint4*>(tile)[lane];
    operand.r[0] = r.x, operand.r[1] = r.y, operand.r[2] = r.z, operand.r[3] = r.w;
  } else {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const float4 x = reinterpret_cast<const float4*>(tile)[32 * j + lane];
      set_element(operand, j, 0, x.x), set_element(operand, j, 1, x.y);
      set_element(operand, j, 2, x.z), set_element(operand, j, 3, x.w);
    }
  }
  return operand;
}

// One value for each of this lane's columns c, c + 1, c + 8 and c + 9: a row, or a tile whose rows are equal.
struct RowVector {
  float x[4] = {};
};
// Row kRow of a tile.
template <int kRow>
__device__ RowVector row_of(const Acc& a) {
  RowVector row;
#pragma unroll
  for (int i = 0; i < 4; ++i)
    row.x[i] = __shfl_sync(0xffffffffu, a.x[i / 2][kRow / 8 * 2 + i % 2], kRow % 8 * 4 + threadIdx.x % 4);
  return row;
}
// Stops the compiler from overlapping the next product with the previous ones, since float32 operands take many
// registers.
template <typename E, bool kLimit = true>
__device__ void limit_overlap() {
  if constexpr (sizeof(E) == 4 && kLimit) __syncwarp();
}

// Sum over the four lanes that share rows of a tile.
inline __device__ float quad_sum(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

// Two adjacent elements in memory, aligned to their size.
template <typename E>
__device__ float2 load2(const E* p) {
  if constexpr (sizeof(E) == 4)
    return *reinterpret_cast<const float2*>(p);
  else
    return unpack2<E>(*reinterpret_cast<const uint32_t*>(p));
}
template <typename E>
__device__ void store2(E* p, float x, float y) {
  if constexpr (sizeof(E) == 4)
    *reinterpret_cast<float2*>(p) = make_float2(x, y);
  else
    *reinterpret_cast<uint32_t*>(p) = pack2<E>(x, y);
}

}  // namespace recgrela::cuda
