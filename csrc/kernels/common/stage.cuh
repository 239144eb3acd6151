// Operands of tensor-core products in shared memory, and their results in memory.
//
// Rows in shared memory are kStagePad elements further apart than their width, so that the loads of a warp by
// load_operand fall into different banks.
#pragma once

#include "kernels/common/device.cuh"
#include "kernels/common/tile.cuh"

namespace recgrela::cuda {

constexpr int kStagePad = 8;

// Distance of rows in shared memory, in elements.
inline __host__ __device__ constexpr int stage_stride(int width) { return width + kStagePad; }

// Operands A in shared memory, in the order in which lanes hold them, as vectors of 16 bytes: loaded without
// conversion, moves or bank conflicts.
template <typename E>
constexpr int kOperandVectors = sizeof(Operand<E>) / 16 * 32;

template <typename E>
__device__ void store_operand(uint4* to, const Operand<E>& m) {
  const int lane = threadIdx.x % 32;
  if constexpr (sizeof(E) == 4) {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      // the order of mma's registers
      to[32 * j + lane] = make_uint4(m.high[j][0], m.high[j][2], m.high[j][1], m.high[j][3]);
      to[64 + 32 * j + lane] = make_uint4(m.low[j][0], m.low[j][2], m.low[j][1], m.low[j][3]);
    }
  } else {
    to[lane] = make_uint4(m.r[0], m.r[1], m.r[2], m.r[3]);
  }
}
template <typename E>
__device__ Operand<E> load_operand(const uint4* from) {
  const int lane = threadIdx.x % 32;
  Operand<E> m;
  if constexpr (sizeof(E) == 4) {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const uint4 high = from[32 * j + lane], low = from[64 + 32 * j + lane];
      m.high[j][0] = high.x, m.high[j][2] = high.y, m.high[j][1] = high.z, m.high[j][3] = high.w;
      m.low[j][0] = low.x, m.low[j][2] = low.y, m.low[j][1] = low.z, m.low[j][3] = low.w;
    }
  } else {
    const uint4 r = from[lane];
    m.r[0] = r.x, m.r[1] = r.y, m.r[2] = r.z, m.r[3] = r.w;
  }
  return m;
}

// Rows of a product in memory. With D = A B^T for an A that has the matrix's columns as rows and a B that has its rows,
// the sums of one lane, kTiles of them for kTiles tiles of A, are 2 kTiles elements of each of its four rows. If row i
// of A's tile n is column output_column<E, kTiles>(n, i), they are side by side, as vectors of up to 16 bytes, and
// eight lanes store a row's vectors one after the other.
template <typename E, int kTiles>
constexpr int kOutputVector = 2 * kTiles < 16 / int{sizeof(E)} ? 2 * kTiles : 16 / int{sizeof(E)};

template <typename E, int kTiles>
__device__ int output_column(int tile, int i) {
  constexpr int kVector = kOutputVector<E, kTiles>;
  const int k = 2 * tile + i / 8;
  return k / kVector * 8 * kVector + i % 8 * kVector + k % kVector;
}

// Stores such sums to `rows` rows, at most 16, of columns 0 .. `width` - 1, a multiple of 16, of a matrix whose rows
// are `stride` elements apart.
template <typename E, int kTiles>
__device__ void store_outputs(E* matrix, int stride, int rows, int width, const Acc (&sums)[kTiles]) {
  constexpr int kVector = kOutputVector<E, kTiles>, kWords = kVector * int{sizeof(E)} / 4;
  const int lane = threadIdx.x % 32, first = tile_col(lane, 0, 0);
  E* const lane_rows = matrix + first * stride + lane / 4 * kVector;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int row = tile_col(0, i / 2, i % 2);
#pragma unroll
    for (int v = 0; v < 2 * kTiles / kVector; ++v) {
      const int column = v * 8 * kVector;
      uint32_t words[kWords];
#pragma unroll
      for (int w = 0; w < kWords; ++w) {
        if constexpr (sizeof(E) == 4) {
          const int k = v * kVector + w;
          words[w] = float_bits(sums[k / 2].x[i / 2][k % 2 * 2 + i % 2]);
        } else {
          const Acc& s = sums[v * kVector / 2 + w];
          words[w] = pack2<E>(s.x[i / 2][i % 2], s.x[i / 2][2 + i % 2]);
        }
      }
      if (first + row < rows && column + lane / 4 * kVector < width) {
        E* const to = lane_rows + row * stride + column;
        if constexpr (kWords == 4) {
          *reinterpret_cast<uint4*>(to) = make_uint4(words[0], words[1], words[2], words[3]);
        } else if constexpr (kWords == 2) {
          *reinterpret_cast<uint2*>(to) = make_uint2(words[0], words[1]);
        } else {
          *reinterpret_cast<uint32_t*>(to) = words[0];
        }
      }
    }
  }
}

// Adds the elements of such rows to the sums.
template <typename E, int kTiles>
__device__ void add_outputs(Acc (&sums)[kTiles], const E* matrix, int stride, int rows, int width) {
  constexpr int kVector = kOutputVector<E, kTiles>, kWords = kVector * int{sizeof(E)} / 4;
  struct alignas(4 * kWords) Vector {
    uint32_t words[kWords];
  };
  const int lane = threadIdx.x % 32, first = tile_col(lane, 0, 0);
  const E* const lane_rows = matrix + first * stride + lane / 4 * kVector;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int row = tile_col(0, i / 2, i % 2);
#pragma unroll
    for (int v = 0; v < 2 * kTiles / kVector; ++v) {
      const int column = v * 8 * kVector;
      if (first + row >= rows || column + lane / 4 * kVector >= width) continue;
      const Vector x = *reinterpret_cast<const Vector*>(lane_rows + row * stride + column);
#pragma unroll
      for (int w = 0; w < kWords; ++w) {
        if constexpr (sizeof(E) == 4) {
          const int k = v * kVector + w;
          sums[k / 2].x[i / 2][k % 2 * 2 + i % 2] += bits_float(x.words[w]);
        } else {
          const float2 pair = unpack2<E>(x.words[w]);
          Acc& s = sums[v * kVector / 2 + w];
          s.x[i / 2][i % 2] += pair.x, s.x[i / 2][2 + i % 2] += pair.y;
        }
      }
    }
  }
}

}  // namespace recgrela::cuda
