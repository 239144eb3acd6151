// Forward of the convolution c = bias + sum_k weight_k v[row - 3 + k] of 16 channels, and the SiLU of it.
//
// At 16 bits, tensor cores multiply the rows three and two before, and one and none before, of 8 channels by diagonal
// matrices of the weights, which are sums of two numbers. A value that is not finite therefore also reaches the seven
// channels beside it in these rows.
#pragma once

#include "kernels/gated_rela/narrow/convolution.cuh"
#include "kernels/gated_rela/narrow/quads.cuh"

namespace recgrela::cuda::narrow {

// Registers hold the weights. Where heads have two tiles, shared memory does, unless the causal form needs so many
// registers that fewer warps run in any case.
template <typename E, int kHead, bool kCausal>
class ForwardConvolution {
 public:
  using Rows = ValueRows<E, kHead>;
  static constexpr bool kShared = kHead > kTile && !kCausal;
  struct alignas(16) Memory {
    uint4 weights[kShared ? 4 : 1][32];
    float4 bias[kShared ? 2 : 1][4];
  };

  // Loads the weights and the bias of `channels` channels from the first one on. What it keeps in shared memory is
  // readable after a barrier.
  __device__ void load(const RelaPlan& p, int64_t first, int channels, int lane, Memory& memory) {
    shared_ = &memory.weights[0][lane], shared_bias_ = &memory.bias[0][lane % 4];
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      if (8 * j >= channels) break;
      const float* const bias = p.conv_bias + first + tile_col(lane, j, 0);
      const float x = bias[0] * kSiluScale<E>, y = bias[1] * kSiluScale<E>;
      (kShared ? memory.bias[j][lane % 4] : bias_[j]) = make_float4(x, y, another_register(x), another_register(y));
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        uint32_t upper[2] = {}, rest[2] = {};
        if (lane / 8 == lane % 4) {  // on the diagonal
#pragma unroll
          for (int k = 0; k < 2; ++k) {
            const float w = conv_weight(p, first + 8 * j + lane / 4, 2 * i + k) * kSiluScale<E>;
            const bool odd = lane / 4 % 2;
            upper[k] = pack2<E>(odd ? 0.f : w, odd ? w : 0.f);
            const float2 rounded = unpack2<E>(upper[k]);
            const float x = w - (rounded.x + rounded.y);
            rest[k] = pack2<E>(odd ? 0.f : x, odd ? x : 0.f);
          }
        }
        (kShared ? memory.weights[2 * i + j][lane] : weights_[2 * i + j]) =
            make_uint4(upper[0], upper[1], rest[0], rest[1]);
      }
    }
  }

  // kSiluScale c of 16 rows; `rows` are those three before them, at the lane's offset Rows::shifted.
  __device__ Acc apply(const unsigned char* rows) const {
    Acc c;
#pragma unroll
    for (int j = 0; j < 2; ++j) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const uint4 w = kShared ? shared_[(2 * i + j) * 32] : weights_[2 * i + j];
        uint32_t a[4];
        load_matrices<false>(a, rows + 2 * i * Rows::kRowBytes + j * 16);
        if (i == 0) {
          const float4 bias = kShared ? shared_bias_[4 * j] : bias_[j];
          mma16816<E>(c.x[j], a, {w.z, w.w}, {bias.x, bias.y, bias.z, bias.w});
        } else {
          mma16816<E>(c.x[j], a, {w.z, w.w});
        }
        mma16816<E>(c.x[j], a, {w.x, w.y});
      }
    }
    return c;
  }

 private:
  // Weights of the rows 3 - 2 i and 2 - 2 i before at columns 8 j ..: upper parts, then the rest.
  uint4 weights_[kShared ? 1 : 4] = {};
  const uint4* shared_;
  float4 bias_[kShared ? 1 : 2] = {};  // of this lane's elements
  const float4* shared_bias_;
};

// In float32, lanes hold the weights of their channels, or shared memory does where heads have two tiles.
template <int kHead, bool kCausal>
class ForwardConvolution<float, kHead, kCausal> {
 public:
  using Rows = ValueRows<float, kHead>;
  static constexpr bool kShared = kHead > kTile;
  struct alignas(16) Memory {
    float4 weights[kShared ? kMaxKernelSize + 1 : 1][4];
  };

  __device__ void load(const RelaPlan& p, int64_t first, int channels, int lane, Memory& memory) {
    shared_ = &memory.weights[0][lane % 4];
#pragma unroll
    for (int k = 0; k <= kMaxKernelSize; ++k) {
      float w[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int channel = lane % 4 * 4 + i;
        w[i] = channel >= channels   ? 0.f
               : k == kMaxKernelSize ? p.conv_bias[first + channel]
                                     : conv_weight(p, first + channel, k);
      }
      (kShared ? memory.weights[k][lane % 4] : weights_[k]) = make_float4(w[0], w[1], w[2], w[3]);
    }
  }

  // The same; `rows` are at the lane's offset Rows::copied.
  __device__ Acc apply(const unsigned char* rows) const {
    float4 w[kMaxKernelSize + 1];
#pragma unroll
    for (int k = 0; k <= kMaxKernelSize; ++k) w[k] = kShared ? shared_[k * 4] : weights_[k];
    Acc c;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float4 sum = w[kMaxKernelSize];
#pragma unroll
      for (int k = 0; k < kMaxKernelSize; ++k) {
        const float4 x = *reinterpret_cast<const float4*>(rows + (8 * h + k) * Rows::kRowBytes);
        sum.x += w[k].x * x.x, sum.y += w[k].y * x.y, sum.z += w[k].z * x.z, sum.w += w[k].w * x.w;
      }
      set_quad(c, h, sum);
    }
    return c;
  }

 private:
  float4 weights_[kShared ? 1 : kMaxKernelSize + 1];
  const float4* shared_;
};

}  // namespace recgrela::cuda::narrow
