// Convolution over the values of a chunk.
//
// At 16 bits, tensor cores compute it: the rows of eight channels at two shifts are an operand with 16 columns, and the
// other operand has the two weights of each channel on diagonals, as a rounded number and its remainder. float32 rows
// take ordinary multiplications.
#pragma once

#include "kernels/gated_rela/silu.cuh"
#include "kernels/gated_rela/wide/values.cuh"

namespace recgrela::cuda {

// Weights and bias times kSiluScale in shared memory.
template <typename E, int kHead>
struct WideConvWeights {
  // diagonals[8 t + c][i][j] has the weights of channel 16 t + 8 j + c for rows 3 - 2 i and 2 - 2 i before the current
  // one, at the halves of registers where lane 4 c + c / 2 holds the diagonals: first both rounded, then both
  // remainders. The last one is zeros for the lanes that hold no element of a diagonal.
  uint4 diagonals[kHead / 2 + 1][2][2];
  alignas(16) float bias[kHead];
};
template <int kHead>
struct WideConvWeights<float, kHead> {
  alignas(16) float weights[kMaxKernelSize][kHead];
  alignas(16) float bias[kHead];
};

// Loads the weights; readable after a barrier.
template <typename E, int kHead>
__device__ void load_conv_weights(const WideTeam<E, kHead>& team, WideConvWeights<E, kHead>& conv) {
  const RelaPlan& p = team.p;
  if (p.kernel_size == 0) return;
  for (int channel = team.thread; channel < kHead; channel += WideTeam<E, kHead>::kThreads) {
    const int64_t from = team.head_channel() + channel;
    if constexpr (sizeof(E) == 4) {
      conv.bias[channel] = p.conv_bias[from];
#pragma unroll
      for (int i = 0; i < kMaxKernelSize; ++i) conv.weights[i][channel] = conv_weight(p, from, i);
    } else {
      conv.bias[channel] = kSiluScale<E> * p.conv_bias[from];
      const int c = channel % 8, j = channel / 8 % 2, shift = c % 2 * 16;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        uint32_t rounded[2], rest[2];
#pragma unroll
        for (int s = 0; s < 2; ++s) {
          const float w = kSiluScale<E> * conv_weight(p, from, 2 * i + s);
          rounded[s] = pack2<E>(w, 0.f);
          rest[s] = pack2<E>(w - unpack2<E>(rounded[s]).x, 0.f) << shift;
          rounded[s] <<= shift;
        }
        conv.diagonals[channel / kTile * 8 + c][i][j] = make_uint4(rounded[0], rounded[1], rest[0], rest[1]);
      }
    }
  }
  if constexpr (sizeof(E) == 2) {
    if (team.thread < 4) conv.diagonals[kHead / 2][team.thread / 2][team.thread % 2] = make_uint4(0, 0, 0, 0);
  }
}

// c = bias + sum_k weight_k v[row - 3 + k] of tile r at own channels; times kSiluScale.
template <typename E, int kHead>
__device__ Acc convolve_rows(const WideTeam<E, kHead>& team, WideValues<E, kHead>& v,
                             const WideConvWeights<E, kHead>& conv, int r) {
  const int lane = team.lane;
  Acc c;
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    const float2 bias = load2(conv.bias + team.own() + tile_col(lane, j, 0));
#pragma unroll
    for (int h = 0; h < 2; ++h) c.x[j][2 * h] = bias.x, c.x[j][2 * h + 1] = bias.y;
  }
  if constexpr (sizeof(E) == 4) {
    constexpr int kStride = WideValues<E, kHead>::kStride;
    const float* const rows =
        v.raw(kWideBefore - kMaxHistory + r * kTile + lane / 4, team.own() + tile_col(lane, 0, 0));
    const float* const weights = conv.weights[0] + team.own() + tile_col(lane, 0, 0);
#pragma unroll
    for (int j = 0; j < 2; ++j)
#pragma unroll
      for (int i = 0; i < kMaxKernelSize; ++i) {
        const float2 w = load2(weights + i * kHead + 8 * j);
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const float2 x = load2(rows + (i + 8 * h) * kStride + 8 * j);
          c.x[j][2 * h] += w.x * x.x, c.x[j][2 * h + 1] += w.y * x.y;
        }
      }
  } else {
    const int n = lane / 4;
    const bool diagonal = lane % 4 == n / 2;
    const uint4(&weights)[2][2] = conv.diagonals[diagonal ? team.warp * 8 + n : kHead / 2];
    const E* const rows = v.tile(team.warp, r) + kWideBefore * kTile;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = lane % 16 - (lane / 16 ? 2 : 3) + 2 * i;
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        uint32_t x[4];
        load_matrices<false>(x, rows + swizzled(row, 8 * j));
        const uint4 w = weights[i][j];
        const uint32_t rounded[2] = {w.x, w.y}, rest[2] = {w.z, w.w};
        mma16816<E>(c.x[j], x, rest);
        mma16816<E>(c.x[j], x, rounded);
      }
    }
  }
  return c;
}

}  // namespace recgrela::cuda
