// Backward of the convolution c = bias + sum_k weight_k v[row - 3 + k], whose SiLU is added to the attention.
#pragma once

#include "kernels/gated_rela/chunk.cuh"

namespace recgrela::cuda {

// Gradients of c at the rows of a chunk and the kMaxHistory rows after them, in shared memory.
template <int kHead>
struct ConvGradient {
  static constexpr int kStride = kHead + 8;  // puts the rows of a quarter warp in different banks
  alignas(16) float x[(kTile + kMaxHistory) * kStride];
};

// Gradients of the weights and the bias, summed over this lane's rows, at the channels that it holds.
struct ConvWeightGradients {
  float2 x[2][kMaxKernelSize + 1];
};
inline __device__ ConvWeightGradients zero_conv_weight_gradients() {
  ConvWeightGradients gradients;
#pragma unroll
  for (int i = 0; i < 2 * (kMaxKernelSize + 1); ++i) gradients.x[i % 2][i / 2] = make_float2(0.f, 0.f);
  return gradients;
}

// Returns SiLU(c) and stores the gradient of c, from the gradient `a` of SiLU(c). Adds to the gradients of the weights
// if `own_rows`: the chunk is in the segment.
template <typename E, int kHead>
__device__ Acc convolve_back(const Team<E, kHead>& team, const Acc& a, const E* v, const float* conv_weights,
                             bool own_rows, ConvGradient<kHead>& gradient, ConvWeightGradients& d_weights) {
  using T = Team<E, kHead>;
  Acc silu;
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    const int column = team.own() + tile_col(team.lane, j, 0);
    float2 w[kMaxKernelSize + 1];
#pragma unroll
    for (int i = 0; i <= kMaxKernelSize; ++i) w[i] = load2(conv_weights + i * kHead + column);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = tile_row(team.lane, 2 * h);
      float2 x[kMaxKernelSize], c = w[kMaxKernelSize], d;
#pragma unroll
      for (int i = 0; i < kMaxKernelSize; ++i) {
        x[i] = load2(v + (row - kMaxHistory + i) * T::kStride + column);
        c.x += w[i].x * x[i].x, c.y += w[i].y * x[i].y;
      }
      const float s = sigmoid(c.x), t = sigmoid(c.y);
      c.x *= s, c.y *= t;
      silu.x[j][2 * h] = c.x, silu.x[j][2 * h + 1] = c.y;
      d.x = a.x[j][2 * h] * silu_grad(s, c.x), d.y = a.x[j][2 * h + 1] * silu_grad(t, c.y);
      store2(gradient.x + row * ConvGradient<kHead>::kStride + column, d.x, d.y);
      if (!own_rows) continue;
#pragma unroll
      for (int i = 0; i < kMaxKernelSize; ++i) {
        float2& sum = d_weights.x[j][i];
        sum.x += d.x * x[i].x, sum.y += d.y * x[i].y;
      }
      d_weights.x[j][kMaxKernelSize].x += d.x, d_weights.x[j][kMaxKernelSize].y += d.y;
    }
  }
  return silu;
}

// Adds the gradient of the values through the convolution.
template <typename E, int kHead>
__device__ void add_conv_gradient(const Team<E, kHead>& team, Acc& d_value, const float* conv_weights,
                                  const ConvGradient<kHead>& gradient) {
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    const int column = team.own() + tile_col(team.lane, j, 0);
#pragma unroll
    for (int i = 0; i < kMaxKernelSize; ++i) {
      const float2 w = load2(conv_weights + (kMaxHistory - i) * kHead + column);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const float2 c = load2(gradient.x + (tile_row(team.lane, 2 * h) + i) * ConvGradient<kHead>::kStride + column);
        d_value.x[j][2 * h] += w.x * c.x, d_value.x[j][2 * h + 1] += w.y * c.y;
      }
    }
  }
}

// Adds the gradient of the final history to the last values of the sequence. `first_row` is the chunk's first row.
template <typename E, int kHead>
__device__ void add_final_gradient(const Team<E, kHead>& team, Acc& d_value, int64_t first_row) {
  const RelaPlan& p = team.p;
  const E* const d_final_history = static_cast<const E*>(p.d_final_history);
  const int history = p.kernel_size - 1;
  team.for_each_pair([&](int row, int channel, int j, int e) {
    const int64_t last = first_row + row - (team.segment.sequence_end - history);
    if (last < 0 || last >= history || !team.in_head(channel)) return;
    const int64_t offset = (team.segment.sequence * history + last) * p.width() + team.head_channel() + channel;
    const float2 c = load2(d_final_history + offset);
    d_value.x[j][e] += c.x, d_value.x[j][e + 1] += c.y;
  });
}

// Moves the gradients at the first rows of a chunk to the rows after the chunk that is processed next, by own channels.
// If `zero`, stores zeros there instead.
template <typename E, int kHead>
__device__ void move_conv_gradient(const Team<E, kHead>& team, ConvGradient<kHead>& gradient, bool zero) {
  constexpr int kStride = ConvGradient<kHead>::kStride;
  float* const own = gradient.x + team.own();
  for (int i = team.lane; i < kMaxHistory * kTile; i += 32) {
    float* const row = own + i / kTile * kStride + i % kTile;
    row[kTile * kStride] = zero ? 0.f : row[0];
  }
}

template <typename E, int kHead>
__device__ void store_conv_weight_gradients(const Team<E, kHead>& team, ConvWeightGradients gradients) {
  const RelaPlan& p = team.p;
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    const int channel = team.own() + tile_col(team.lane, j, 0);
    float* const out =
        p.conv_partials + (team.segment.slot * p.width() + team.head_channel() + channel) * (kMaxKernelSize + 1);
#pragma unroll
    for (int i = 0; i <= kMaxKernelSize; ++i) {
      float2 sum = gradients.x[j][i];
#pragma unroll
      for (int lanes = 4; lanes < 32; lanes *= 2) {
        sum.x += __shfl_xor_sync(0xffffffffu, sum.x, lanes);
        sum.y += __shfl_xor_sync(0xffffffffu, sum.y, lanes);
      }
      if (team.lane < 4 && channel < p.head_dim) out[i] = sum.x, out[kMaxKernelSize + 1 + i] = sum.y;
    }
  }
}

// Stores the gradient of the initial history, from the gradients of c at the sequence's first rows, which
// move_conv_gradient has moved.
template <typename E, int kHead>
__device__ void store_initial_history_gradient(const Team<E, kHead>& team, const float* conv_weights,
                                               const ConvGradient<kHead>& gradient) {
  const RelaPlan& p = team.p;
  const E* const d_final_history = static_cast<const E*>(p.d_final_history);
  const int history = p.kernel_size - 1;
  for (int i = team.lane; i < history * kTile; i += 32) {
    const int back = i / kTile + 1, column = team.own() + i % kTile;  // rows before the first of the sequence
    if (column >= p.head_dim) continue;
    float d = 0.f;
    for (int s = back; s <= history; ++s)
      d += conv_weights[(kMaxHistory - s) * kHead + column] *
           gradient.x[(kTile + s - back) * ConvGradient<kHead>::kStride + column];
    const int64_t channel = team.head_channel() + column, last = history - back - team.segment.length();
    const int64_t base = team.segment.sequence * history;
    if (d_final_history && last >= 0) d += to_float(d_final_history[(base + last) * p.width() + channel]);
    static_cast<E*>(p.d_initial_history)[(base + history - back) * p.width() + channel] = from_float<E>(d);
  }
}

}  // namespace recgrela::cuda
