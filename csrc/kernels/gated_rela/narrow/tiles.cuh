// Tiles of 16 x 16 numbers in shared memory, for heads of up to 32 channels.
//
// A tile of 16-bit numbers is four 8 x 8 matrices of 128 bytes, in the order of Operand's registers: rows 0 to 7 and 8
// to 15 of the columns 0 to 7, then of the columns 8 to 15. ldmatrix reads any orientation of it from two offsets of a
// lane without bank conflicts: matrices in this order, or the second and third swapped. A float32 tile as an operand is
// three such tiles, its parts (common/split.cuh).
#pragma once

#include <type_traits>

#include "kernels/common/activations.cuh"
#include "kernels/common/split.cuh"
#include "kernels/gated_rela/plan.cuh"

namespace recgrela::cuda::narrow {

constexpr int kMatrixBytes = 128, kPartBytes = 4 * kMatrixBytes;
template <typename E>
constexpr int kTileBytes = kParts<E> * kPartBytes;
// 16 rows of 16 numbers as they are in global memory. float32 rows are four blocks of 8 rows and 8 columns.
template <typename E>
constexpr int kRowsBytes = kTile * kTile * int{sizeof(E)};
template <typename E>
constexpr int kRowsOrTileBytes = kTileBytes<E> > kRowsBytes<E> ? kTileBytes<E> : kRowsBytes<E>;

using Bytes = unsigned char*;

// Offsets of a lane in tiles.
struct TileLane {
  int lane, straight, swapped;

  __device__ TileLane()
      : lane(keep(threadIdx.x % 32)),
        straight(lane * 16),
        swapped(keep(lane / 16 * kMatrixBytes + lane / 8 % 2 * (2 * kMatrixBytes) + lane % 8 * 16)) {}
};

// ---- operands ----

// Operand A: M = tile, or its transpose.
template <typename E>
__device__ Split<E> load_left(const TileLane& at, const unsigned char* tile) {
  Split<E> m;
#pragma unroll
  for (int p = 0; p < kParts<E>; ++p) load_matrices<false>(m.part[p].r, tile + p * kPartBytes + at.straight);
  return m;
}
template <typename E>
__device__ Split<E> load_left_transposed(const TileLane& at, const unsigned char* tile) {
  Split<E> m;
#pragma unroll
  for (int p = 0; p < kParts<E>; ++p) load_matrices<true>(m.part[p].r, tile + p * kPartBytes + at.swapped);
  return m;
}
// Operand B of D = A M^T: M = tile, or its transpose.
template <typename E, bool kTranspose>
__device__ RightSplit<E> load_right_at(const unsigned char* lane_tile) {
  RightSplit<E> m;
#pragma unroll
  for (int p = 0; p < kParts<E>; ++p) {
    uint32_t r[4];
    load_matrices<kTranspose>(r, lane_tile + p * kPartBytes);
#pragma unroll
    for (int i = 0; i < 4; ++i) m.r[p][i / 2][i % 2] = r[i];
  }
  return m;
}
template <typename E>
__device__ RightSplit<E> load_right(const TileLane& at, const unsigned char* tile) {
  return load_right_at<E, false>(tile + at.swapped);
}
template <typename E>
__device__ RightSplit<E> load_right_transposed(const TileLane& at, const unsigned char* tile) {
  return load_right_at<E, true>(tile + at.straight);
}

template <typename E>
__device__ void store_tile(const TileLane& at, unsigned char* tile, const Split<E>& m) {
#pragma unroll
  for (int p = 0; p < kParts<E>; ++p) store_matrices(tile + p * kPartBytes, at.lane, m.part[p].r);
}

// The sums as operand B, M = a.
template <typename E>
__device__ RightSplit<E> to_right(const Acc& a) {
  RightSplit<E> m;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const Split2<E> pair(a.x[i / 2][i % 2 * 2], a.x[i / 2][i % 2 * 2 + 1]);
#pragma unroll
    for (int p = 0; p < kParts<E>; ++p) m.r[p][i % 2][i / 2] = pair.part[p];
  }
  return m;
}
// Stores an operand B.
template <typename E>
__device__ void store_tile(const TileLane& at, unsigned char* tile, const RightSplit<E>& m) {
#pragma unroll
  for (int p = 0; p < kParts<E>; ++p, tile += kPartBytes)
    store_matrices_swapped(tile, at.lane, at.swapped, {m.r[p][0][0], m.r[p][0][1], m.r[p][1][0], m.r[p][1][1]});
}

// ---- masks of the elements on and below the diagonal, or on and above it ----

struct TileMasks {
  // Masks of the pair of columns that this lane holds of a matrix on the diagonal; and a zero that the compiler does
  // not know, because it copies operands that contain constants, or one register in several places.
  uint32_t lower, upper, zero;

  __device__ explicit TileMasks(int lane) {
    const int row = lane / 4, column = lane % 4 * 2;
    lower = keep((column <= row ? 0xffffu : 0u) | (column < row ? 0xffff0000u : 0u));
    upper = keep((column >= row ? 0xffffu : 0u) | (column + 1 >= row ? 0xffff0000u : 0u));
    zero = __shfl_sync(0xffffffffu, 0u, 0);
  }
};
template <typename E>
__device__ void keep_lower(Split<E>& m, const TileMasks& masks) {
#pragma unroll
  for (int p = 0; p < kParts<E>; ++p) {
    uint32_t (&r)[4] = m.part[p].r;
    r[2] = r[0] & masks.zero, r[0] &= masks.lower, r[3] &= masks.lower;
  }
}
template <typename E>
__device__ void keep_upper(Split<E>& m, const TileMasks& masks) {
#pragma unroll
  for (int p = 0; p < kParts<E>; ++p) {
    uint32_t (&r)[4] = m.part[p].r;
    r[1] = r[0] & masks.zero, r[0] &= masks.upper, r[3] &= masks.upper;
  }
}

// d = ones^T M^T, where `ones` is a matrix of ones and zeros, which one part represents.
template <typename E>
__device__ void add_ones_product(Acc& d, const uint32_t (&ones)[4], const RightSplit<E>& b) {
#pragma unroll
  for (int p = kParts<E> - 1; p >= 0; --p) {
    mma16816<Part<E>>(d.x[0], ones, b.r[p][0]);
    mma16816<Part<E>>(d.x[1], ones, b.r[p][1]);
  }
}
template <typename E>
constexpr uint32_t kOnes = std::is_same_v<Part<E>, fp16> ? 0x3c003c00u : 0x3f803f80u;

// ---- rows ----

// Part of this lane in copies of 16 rows of 16 numbers: the vector of 16 bytes at row and column, which is vector
// `lane` in shared memory, and at float32 another one 8 rows further. Lanes in the padding of a head of 8 channels have
// no row.
template <typename E>
struct RowPart {
  int row, to;

  __device__ RowPart(const TileLane& at, int channels)
      : row(keep(column_of(at.lane) < channels ? row_of(at.lane) : 1 << 30)), to(at.straight) {}

  static __device__ int row_of(int lane) { return sizeof(E) == 2 ? lane % 16 : lane / 2 % 8; }
  static __device__ int column_of(int lane) { return lane / 16 * 8 + (sizeof(E) == 2 ? 0 : lane % 2 * 4); }

  // Starts to copy the rows below n to shared memory, and zeros for the other rows.
  __device__ void copy(unsigned char* rows, const E* from, int stride, int n) const {
    copy_async16(rows + to, from, row < n);
    if constexpr (sizeof(E) == 4) {
      copy_async16(rows + to + 512, from + 8 * stride, row + 8 < n);
    }
  }
  // Stores negative infinity, whose phi is 0, in the padding.
  __device__ void fill_padding(unsigned char* rows) const {
    if (to < 256) return;  // the columns 0 to 7
    const uint32_t bits = sizeof(E) == 4 ? 0xff800000u : std::is_same_v<E, fp16> ? 0xfc00fc00u : 0xff80ff80u;
    *reinterpret_cast<uint4*>(rows + to) = make_uint4(bits, bits, bits, bits);
    if constexpr (sizeof(E) == 4) *reinterpret_cast<uint4*>(rows + to + 512) = make_uint4(bits, bits, bits, bits);
  }
};

// The elements of a tile that this lane holds, in the registers of operand A.
template <typename E>
__device__ Acc unpack_tile(const uint32_t (&r)[4]) {
  Acc a;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 x = unpack2<E>(r[i]);
    a.x[i / 2][i % 2 * 2] = x.x, a.x[i / 2][i % 2 * 2 + 1] = x.y;
  }
  return a;
}
// Loads rows in float32 as the elements of a tile that this lane holds.
template <typename E>
__device__ Acc load_rows(const TileLane& at, const unsigned char* rows) {
  if constexpr (sizeof(E) == 2) {
    uint32_t r[4];
    load_matrices<false>(r, rows + at.straight);
    return unpack_tile<E>(r);
  } else {
    Acc a;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 x = *reinterpret_cast<const float2*>(rows + i * 256 + at.lane * 8);
      a.x[i % 2][i / 2 * 2] = x.x, a.x[i % 2][i / 2 * 2 + 1] = x.y;
    }
    return a;
  }
}

inline __device__ void apply_phi(Acc& x) {
#pragma unroll
  for (int i = 0; i < 8; ++i) x.x[i / 4][i % 4] = phi(x.x[i / 4][i % 4]);
}

// Stores what load_rows<float> returns.
inline __device__ void store_rows(const TileLane& at, unsigned char* rows, const Acc& a) {
#pragma unroll
  for (int i = 0; i < 4; ++i)
    *reinterpret_cast<float2*>(rows + i * 256 + at.lane * 8) =
        make_float2(a.x[i % 2][i / 2 * 2], a.x[i % 2][i / 2 * 2 + 1]);
}

// (cos, sin) for the pairs of channels that this lane holds.
struct TileAngles {
  float2 x[2][2];  // [j][row / 8], as in Acc
};
inline __device__ TileAngles load_angles(const TileLane& at, const unsigned char* rows) {
  const Acc a = load_rows<float>(at, rows);
  TileAngles angles;
#pragma unroll
  for (int i = 0; i < 4; ++i) angles.x[i / 2][i % 2] = make_float2(a.x[i / 2][i % 2 * 2], a.x[i / 2][i % 2 * 2 + 1]);
  return angles;
}
// R x + more
inline __device__ Acc rotate(const Acc& x, const TileAngles& angles) {
  Acc y;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 a = angles.x[i / 2][i % 2];
    const float u = x.x[i / 2][i % 2 * 2], v = x.x[i / 2][i % 2 * 2 + 1];
    y.x[i / 2][i % 2 * 2] = u * a.x - v * a.y, y.x[i / 2][i % 2 * 2 + 1] = v * a.x + u * a.y;
  }
  return y;
}
// more + R^-1 x
inline __device__ Acc rotate_back(const Acc& x, const TileAngles& angles, const Acc& more) {
  Acc y;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int j = i / 2, e = i % 2 * 2;
    const float2 a = angles.x[j][i % 2];
    const float u = x.x[j][e], v = x.x[j][e + 1];
    y.x[j][e] = more.x[j][e] + u * a.x + v * a.y, y.x[j][e + 1] = more.x[j][e + 1] + v * a.x - u * a.y;
  }
  return y;
}

}  // namespace recgrela::cuda::narrow
