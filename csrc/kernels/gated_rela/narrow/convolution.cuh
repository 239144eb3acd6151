// Backward of the convolution c = bias + sum_k weight_k v[row - 3 + k] of 16 channels, whose SiLU is added to the
// attention.
//
// At 16 bits, tensor cores multiply 8 channels of rows by diagonal matrices, which hold the weights as sums of two
// numbers; the gradient of the weights is the diagonal of products of rows with gradients. Gradients of c, which are
// sums of two numbers as well, keep the results as exact as float32 gradients would.
#pragma once

#include "kernels/gated_rela/narrow/silu.cuh"

namespace recgrela::cuda::narrow {

// Rows of 16 channels that are read at any row: the values of a chunk and kMaxHistory rows before them, or gradients of
// c and kMaxHistory rows after them. 16-bit rows are 48 bytes apart, which puts eight of them in different banks;
// float32 rows are two blocks of 8 columns.
template <typename E>
struct ShiftedRows {
  static constexpr int kRows = kTile + kMaxHistory, kStride = sizeof(E) == 2 ? 48 : 32;
  static constexpr int kBlock = sizeof(E) == 2 ? 16 : kRows * kStride;  // from 8 columns to the next
  static constexpr int kBytes = sizeof(E) == 2 ? kRows * kStride : 2 * kBlock;
  static constexpr int kHistory = kMaxHistory * kStride;

  // Offset of the vector of 16 bytes at row and column.
  static __device__ int vector(int row, int column) {
    return row * kStride + column / 8 * kBlock + column % 8 * int{sizeof(E)};
  }
  // Offsets of this lane: rows as an operand A, or transposed as an operand B; rows as an operand B; eight columns of
  // rows and of the rows after them as an operand A, in either order; and both with rows as the inner dimension.
  static __device__ int straight(int lane) { return lane % 16 * kStride + lane / 16 * 16; }
  static __device__ int swapped(int lane) { return (lane / 16 * 8 + lane % 8) * kStride + lane / 8 % 2 * 16; }
  static __device__ int shifts(int lane) { return (lane % 16 + lane / 16) * kStride; }
  static __device__ int reversed_shifts(int lane) { return (lane % 16 + 1 - lane / 16) * kStride; }
  static __device__ int pairs(int lane) { return (lane / 16 * 8 + lane / 8 % 2 + lane % 8) * kStride; }
  // Elements at row lane / 4 and column 2 (lane % 4); float32 only.
  static __device__ int element(int lane) { return lane / 4 * kStride + lane % 4 * 8; }
};

// Gradients of c at the rows of a chunk and after them, as the sum of this many numbers, each in rows of its own.
template <typename E>
constexpr int kGradientParts = sizeof(E) == 2 ? 2 : 1;
template <typename E>
constexpr int kGradientBytes = kGradientParts<E> * ShiftedRows<E>::kBytes;

template <typename E>
struct ConvolutionBase {
  float2 d_bias[2] = {};  // summed over this lane's rows, by its columns

  // Stores the sums of a unit to [16 channels][5], which has `channels` of them.
  __device__ void store_bias_gradient(float* out, int lane, int channels) const {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      float2 sum = d_bias[j];
#pragma unroll
      for (int lanes = 4; lanes < 32; lanes *= 2) {
        sum.x += __shfl_xor_sync(0xffffffffu, sum.x, lanes);
        sum.y += __shfl_xor_sync(0xffffffffu, sum.y, lanes);
      }
      float* const to = out + tile_col(lane, j, 0) * (kMaxKernelSize + 1) + kMaxKernelSize;
      if (lane < 4 && 8 * j < channels) {
        to[0] = sum.x * kSiluScale<E>;
        to[kMaxKernelSize + 1] = sum.y * kSiluScale<E>;
      }
    }
  }
};

template <typename E>
struct Convolution : ConvolutionBase<E> {
  using Rows = ShiftedRows<E>;
  static constexpr int kSharedBytes = 4 * 9 * 16 + 8 * 16;
  // [i][9]: for the lanes that hold weights, and then for all others zeros, the upper parts of the weights 2 i and 2 i
  // + 1 of the columns 0 to 7 and 8 to 15; the lower parts of i are at 2 + i. Then the biases as the elements of a
  // tile.
  const uint4* weights;
  const float4* biases;
  const int shifts = keep(Rows::shifts(threadIdx.x % 32));
  const int reversed_shifts = keep(Rows::reversed_shifts(threadIdx.x % 32));
  const int pairs = keep(Rows::pairs(threadIdx.x % 32));
  float d_weights[2][2][4] = {};  // of weights 2 i and 2 i + 1: rows 0 to 7 and 8 to 15 of the sums

  // Loads the weights of `channels` channels from the first one on, unless they are in shared memory already.
  __device__ void load(const RelaPlan& p, int64_t first, int channels, Bytes shared, int lane, bool loaded) {
    const int place = lane / 8 == lane % 4 ? lane / 4 : 8;
    uint4* const to = reinterpret_cast<uint4*>(shared);
    float4* const biases_to = reinterpret_cast<float4*>(to + 4 * 9);
    weights = to + place, biases = biases_to + lane % 4;
    if (loaded) return;
    uint32_t parts[kMaxKernelSize][4] = {};
    float bias[4] = {};
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      if (8 * j >= channels) continue;
      const int64_t channel = first + 8 * j;
      const float* const b = p.conv_bias + channel + lane % 4 * 2;
      bias[2 * j] = b[0] * kSiluScale<E>, bias[2 * j + 1] = b[1] * kSiluScale<E>;
      if (lane / 8 != lane % 4) continue;
#pragma unroll
      for (int k = 0; k < kMaxKernelSize; ++k) {
        const float w = conv_weight(p, channel + lane / 4, k) * kSiluScale<E>;
        const bool odd = lane / 4 % 2;
        const uint32_t upper = pack2<E>(odd ? 0.f : w, odd ? w : 0.f);
        const float2 rounded = unpack2<E>(upper);
        const float rest = w - (rounded.x + rounded.y);
        parts[k / 2][2 * j + k % 2] = upper;
        parts[2 + k / 2][2 * j + k % 2] = pack2<E>(odd ? 0.f : rest, odd ? rest : 0.f);
      }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (place < 8 || lane == 1) to[9 * i + place] = make_uint4(parts[i][0], parts[i][1], parts[i][2], parts[i][3]);
    if (lane >= 4) return;
    biases_to[lane] = make_float4(bias[0], bias[1], bias[0], bias[1]);
    biases_to[4 + lane] = make_float4(bias[2], bias[3], bias[2], bias[3]);
  }

  // Adds weights times rows, which are sums of kRowParts numbers, to d. An operand has eight columns of rows for the
  // weights 2 i and 2 i + 1; those for the weights 0 and 1 are at `rows`, the others kStep rows from there.
  template <int kStep, int kRowParts>
  __device__ void add(Acc& d, const unsigned char* rows) const {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const uint4 upper = weights[9 * i], lower = weights[9 * (2 + i)];
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const uint32_t upper_j[2] = {j ? upper.z : upper.x, j ? upper.w : upper.y};
        const uint32_t lower_j[2] = {j ? lower.z : lower.x, j ? lower.w : lower.y};
        const unsigned char* const columns = rows + i * kStep * Rows::kStride + j * Rows::kBlock;
        uint32_t r[4];
        if constexpr (kRowParts > 1) {
          load_matrices<false>(r, columns + Rows::kBytes);
          mma16816<E>(d.x[j], r, upper_j);
        }
        load_matrices<false>(r, columns);
        mma16816<E>(d.x[j], r, lower_j);
        mma16816<E>(d.x[j], r, upper_j);
      }
    }
  }

  // Computes SiLU(c) and stores the gradient of c over kSiluScale, given the gradient of SiLU(c).
  __device__ void back(const unsigned char* v, Acc gradient, Bytes d_c, const TileLane& at, int straight,
                       float (&silu)[2][4]) {
    const float4 low = biases[0], high = biases[4];
    Acc c = {{{low.x, low.y, low.z, low.w}, {high.x, high.y, high.z, high.w}}};
    add<2, 1>(c, v + shifts);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      float& d = gradient.x[i / 4][i % 4];
      silu[i / 4][i % 4] = silu_back<E>(c.x[i / 4][i % 4], d);
      float2& sum = this->d_bias[i / 4];
      (i % 2 ? sum.y : sum.x) += d;
    }
    const Operand<E> upper = to_operand<E>(gradient);
    uint32_t rest[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 rounded = unpack2<E>(upper.r[i]);
      rest[i] = pack2<E>(gradient.x[i / 2][i % 2 * 2] - rounded.x, gradient.x[i / 2][i % 2 * 2 + 1] - rounded.y);
    }
    store_matrix_rows<Rows::kStride>(d_c + straight, at.lane, upper.r);
    store_matrix_rows<Rows::kStride>(d_c + Rows::kBytes + straight, at.lane, rest);
  }

  // Adds the gradient of the values to d_v, and the products of values and gradients to those of the weights. The
  // gradients of c are in shared memory, those of the rows after the chunk too.
  __device__ void add_gradients(Acc& d_v, const unsigned char* v, const unsigned char* d_c, const TileLane&,
                                int straight) {
    add<-2, 2>(d_v, d_c + 2 * Rows::kStride + reversed_shifts);
    uint32_t upper[4], rest[4];
    load_matrices<true>(upper, d_c + straight);
    load_matrices<true>(rest, d_c + Rows::kBytes + straight);
    const unsigned char* const pairs_of_rows = v + pairs;
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        uint32_t a[4];
        load_matrices<true>(a, pairs_of_rows + 2 * i * Rows::kStride + j * Rows::kBlock);
        mma16816<E>(d_weights[i][j], a, {rest[2 * j], rest[2 * j + 1]});
        mma16816<E>(d_weights[i][j], a, {upper[2 * j], upper[2 * j + 1]});
      }
  }

  // Stores the sums of a unit to [16 channels][5], of which `channels` exist.
  __device__ void store_gradients(float* out, const TileLane& at, int channels) const {
    this->store_bias_gradient(out, at.lane, channels);
    if (at.lane / 8 != at.lane % 4) return;
    const bool odd = at.lane / 4 % 2;
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        if (8 * j >= channels) break;
        float* const to = out + (8 * j + at.lane / 4) * (kMaxKernelSize + 1) + 2 * i;
        const float (&d)[4] = d_weights[i][j];
        to[0] = (odd ? d[1] : d[0]) * kSiluScale<E>;
        to[1] = (odd ? d[3] : d[2]) * kSiluScale<E>;
      }
  }
};

template <>
struct Convolution<float> : ConvolutionBase<float> {
  using Rows = ShiftedRows<float>;
  static constexpr int kSharedBytes = (kMaxKernelSize + 1) * kTile * 4;
  const float2* weights;  // at this lane's columns
  float2 d_weights[2][kMaxKernelSize] = {};

  __device__ void load(const RelaPlan& p, int64_t first, int channels, Bytes shared, int lane, bool loaded) {
    float* const floats = reinterpret_cast<float*>(shared);
    weights = reinterpret_cast<const float2*>(floats + lane % 4 * 2);
    if (loaded) return;
    for (int i = lane; i < (kMaxKernelSize + 1) * kTile; i += 32) {
      const int channel = i % kTile, k = i / kTile;
      float x = 0.f;
      if (channel < channels)
        x = k == kMaxKernelSize ? p.conv_bias[first + channel] : conv_weight(p, first + channel, k);
      floats[i] = x;
    }
  }
  __device__ float2 weight(int k, int j) const { return weights[k * (kTile / 2) + j * 4]; }

  __device__ void back(const unsigned char* v, Acc gradient, Bytes d_c, const TileLane& at, int, float (&silu)[2][4]) {
    const int element = Rows::element(at.lane);
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      float2 w[kMaxKernelSize + 1];
#pragma unroll
      for (int k = 0; k <= kMaxKernelSize; ++k) w[k] = weight(k, j);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const unsigned char* const rows = v + element + j * Rows::kBlock + 8 * h * Rows::kStride;
        float2 x[kMaxKernelSize], c = w[kMaxKernelSize];
#pragma unroll
        for (int k = 0; k < kMaxKernelSize; ++k) {
          x[k] = *reinterpret_cast<const float2*>(rows + k * Rows::kStride);
          c.x += w[k].x * x[k].x, c.y += w[k].y * x[k].y;
        }
        float2 d = make_float2(gradient.x[j][2 * h], gradient.x[j][2 * h + 1]);
        silu[j][2 * h] = silu_back<float>(c.x, d.x), silu[j][2 * h + 1] = silu_back<float>(c.y, d.y);
        *reinterpret_cast<float2*>(d_c + element + j * Rows::kBlock + 8 * h * Rows::kStride) = d;
        d_bias[j].x += d.x, d_bias[j].y += d.y;
#pragma unroll
        for (int k = 0; k < kMaxKernelSize; ++k) d_weights[j][k].x += d.x * x[k].x, d_weights[j][k].y += d.y * x[k].y;
      }
    }
  }

  __device__ void add_gradients(Acc& d_v, const unsigned char*, const unsigned char* d_c, const TileLane& at, int) {
#pragma unroll
    for (int j = 0; j < 2; ++j)
#pragma unroll
      for (int k = 0; k < kMaxKernelSize; ++k) {
        const float2 w = weight(k, j);
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const int row = 8 * h + kMaxHistory - k;
          const float2 c =
              *reinterpret_cast<const float2*>(d_c + Rows::element(at.lane) + j * Rows::kBlock + row * Rows::kStride);
          d_v.x[j][2 * h] += w.x * c.x, d_v.x[j][2 * h + 1] += w.y * c.y;
        }
      }
  }

  __device__ void store_gradients(float* out, const TileLane& at, int channels) const {
    store_bias_gradient(out, at.lane, channels);
#pragma unroll
    for (int j = 0; j < 2; ++j)
#pragma unroll
      for (int k = 0; k < kMaxKernelSize; ++k) {
        float2 sum = d_weights[j][k];
#pragma unroll
        for (int lanes = 4; lanes < 32; lanes *= 2) {
          sum.x += __shfl_xor_sync(0xffffffffu, sum.x, lanes);
          sum.y += __shfl_xor_sync(0xffffffffu, sum.y, lanes);
        }
        float* const to = out + tile_col(at.lane, j, 0) * (kMaxKernelSize + 1) + k;
        if (at.lane < 4 && 8 * j < channels) to[0] = sum.x, to[kMaxKernelSize + 1] = sum.y;
      }
  }
};

}  // namespace recgrela::cuda::narrow
