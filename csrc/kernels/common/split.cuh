// Operands of tensor-core products as sums of 16-bit numbers, for rows of any type.
//
// A float32 number is the sum of three bf16 numbers, which hold its 24 bits, and six of the nine products give the
// accuracy of float32; numbers of 16 bits are used as they are. Compared with the two TF32 numbers of tile.cuh, this
// takes as many tensor-core instructions, and an operand that is used often is split once, when it is copied to shared
// memory. ldmatrix then loads its parts, transposed or not.
#pragma once

#include "kernels/common/tile.cuh"

namespace recgrela::cuda {

template <typename E>
struct PartType {
  using type = E;
};
template <>
struct PartType<float> {
  using type = bf16;
};
template <typename E>
using Part = typename PartType<E>::type;
template <typename E>
constexpr int kParts = sizeof(E) == 4 ? 3 : 1;

template <typename E>
struct Split {
  Operand<Part<E>> part[kParts<E>];
};

// Splits two numbers: register p of the result has part p of both.
template <typename E>
struct Split2 {
  uint32_t part[kParts<E>];

  __device__ Split2(float x, float y) {
#pragma unroll
    for (int p = 0; p < kParts<E>; ++p) {
      part[p] = pack2<Part<E>>(x, y);
      if (p + 1 == kParts<E>) break;
      const float2 rounded = unpack2<Part<E>>(part[p]);
      x -= rounded.x, y -= rounded.y;
    }
  }
};

// Sets register r of each part, which holds two elements of a row.
template <typename E>
__device__ void set_pair(Split<E>& m, int r, float x, float y) {
  const Split2<E> split(x, y);
#pragma unroll
  for (int p = 0; p < kParts<E>; ++p) m.part[p].r[r] = split.part[p];
}

template <typename E>
__device__ Split<E> to_split(const Acc& a) {
  Split<E> m;
#pragma unroll
  for (int r = 0; r < 4; ++r) set_pair(m, r, a.x[r / 2][r % 2 * 2], a.x[r / 2][r % 2 * 2 + 1]);
  return m;
}

// Loads the operand A, M[i][k] = tile[i * stride + k], or tile[k * stride + i] if kTranspose. Part p is p * part_size
// elements after the first.
template <typename E, bool kTranspose>
__device__ Split<E> load_split(const Part<E>* tile, int stride, int part_size) {
  Split<E> m;
#pragma unroll
  for (int p = 0; p < kParts<E>; ++p) m.part[p] = load_operand<Part<E>, kTranspose>(tile + p * part_size, stride);
  return m;
}

// Operand B of a product. The registers of eight columns of B^T are adjacent, as tensor-core instructions take them.
template <typename E>
struct RightSplit {
  uint32_t r[kParts<E>][2][2];  // [part][columns 8 j ..][half of the inner dimension]
};

template <typename E, bool kTranspose>
__device__ RightSplit<E> load_right(const Part<E>* tile, int stride, int part_size) {
  RightSplit<E> m;
  const int lane = threadIdx.x % 32, i = lane / 16 * 8, k = lane / 8 % 2 * 8, row = lane % 8;
  tile += kTranspose ? (k + row) * stride + i : (i + row) * stride + k;
#pragma unroll
  for (int p = 0; p < kParts<E>; ++p) {
    uint32_t r[4];
    load_matrices<kTranspose>(r, tile + p * part_size);
#pragma unroll
    for (int j = 0; j < 4; ++j) m.r[p][j / 2][j % 2] = r[j];
  }
  return m;
}

// Stores the parts of four numbers at adjacent columns, aligned to 8 bytes.
template <typename E>
__device__ void store_split4(Part<E>* to, int part_size, const float (&x)[4]) {
  const Split2<E> low(x[0], x[1]), high(x[2], x[3]);
#pragma unroll
  for (int p = 0; p < kParts<E>; ++p)
    *reinterpret_cast<uint2*>(to + p * part_size) = make_uint2(low.part[p], high.part[p]);
}

// d += A b, where b are columns 8 j .. 8 j + 7 of B^T.
template <typename E>
__device__ void add_columns_product(float (&d)[4], const Split<E>& a, const RightSplit<E>& b, int j) {
  if constexpr (kParts<E> == 1) {
    mma16816<Part<E>>(d, a.part[0].r, b.r[0][j]);
  } else {
    float sum[4];  // tensor cores truncate their sums: small products first, and ordinary additions to d
#pragma unroll
    for (int small = kParts<E> - 1; small >= 0; --small)
#pragma unroll
      for (int p = 0; p <= small; ++p) {
        if (small == kParts<E> - 1 && p == 0) {
          mma16816_first(sum, a.part[p].r, b.r[small - p][j]);
        } else {
          mma16816<Part<E>>(sum, a.part[p].r, b.r[small - p][j]);
        }
      }
#pragma unroll
    for (int i = 0; i < 4; ++i) d[i] += sum[i];
  }
}

// d += A B^T.
template <typename E>
__device__ void add_product(Acc& d, const Split<E>& a, const RightSplit<E>& b) {
  add_columns_product(d.x[0], a, b, 0);
  add_columns_product(d.x[1], a, b, 1);
}

// Sum of products over few tiles of the inner dimension, without ordinary additions between them: truncated sums of the
// large products, one for each tile, and apart from them of the small ones, whose truncation does not matter.
template <typename E>
struct ShortSum {
  Acc large, small;

  // Adds A B^T.
  __device__ void add(const Split<E>& a, const RightSplit<E>& b) {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
#pragma unroll
      for (int order = kParts<E> - 1; order > 0; --order)
#pragma unroll
        for (int p = 0; p <= order; ++p) mma16816<Part<E>>(small.x[j], a.part[p].r, b.r[order - p][j]);
      mma16816<Part<E>>(large.x[j], a.part[0].r, b.r[0][j]);
    }
  }
  // The sum, at the end.
  __device__ Acc& total() {
    if constexpr (kParts<E> > 1) add_scaled(large, small, 1.f);
    return large;
  }
};

}  // namespace recgrela::cuda
