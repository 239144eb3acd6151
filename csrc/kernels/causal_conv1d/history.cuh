// Final history of causal_conv1d and gradient of the initial history. A thread processes one channel of one sequence.
#pragma once

#include "kernels/causal_conv1d/plan.cuh"
#include "kernels/common/activations.cuh"
#include "kernels/common/sequences.cuh"

namespace recgrela::cuda {

struct SequenceChannel {
  int64_t sequence, channel;
  bool valid;

  __device__ explicit SequenceChannel(const CausalConv1dParams& p) {
    const int64_t i = int64_t{blockIdx.x} * kConvThreads + threadIdx.x;
    sequence = i / p.channels, channel = i % p.channels;
    valid = sequence < p.sequences.num_sequences;
  }
};

template <typename E>
__global__ void __launch_bounds__(kConvThreads) conv_final_history_kernel(const ConvPlan p) {
  const SequenceChannel at(p);
  if (!at.valid) return;
  const RowRange rows = sequence_rows(p.sequences, at.sequence);
  const int64_t history = p.kernel_size - 1, first = at.sequence * history * p.channels + at.channel;
  for (int64_t k = 0; k < history; ++k) {
    const int64_t row = rows.end - history + k;
    E value = from_float<E>(0.f);
    if (row >= rows.begin) {
      value = static_cast<const E*>(p.x.data)[row * p.x.stride + at.channel];
    } else if (p.initial_history) {  // its last row precedes the first row of the sequence
      value = static_cast<const E*>(p.initial_history)[first + (row - rows.begin + history) * p.channels];
    }
    static_cast<E*>(p.final_history)[first + k * p.channels] = value;
  }
}

template <typename E>
__global__ void __launch_bounds__(kConvThreads) conv_d_initial_history_kernel(const ConvPlan p) {
  constexpr int kMaxKernelSize = CausalConv1dParams::kMaxKernelSize, kMaxHistory = kMaxKernelSize - 1;
  const SequenceChannel at(p);
  if (!at.valid) return;
  const RowRange rows = sequence_rows(p.sequences, at.sequence);
  const int64_t length = rows.end - rows.begin;
  const int history = p.kernel_size - 1;
  const int64_t first = at.sequence * history * p.channels + at.channel;
  // The initial history and the rows that read it.
  float x[2 * kMaxHistory] = {}, weight[kMaxKernelSize] = {}, grad[kMaxHistory] = {};
#pragma unroll
  for (int k = 0; k < kMaxKernelSize; ++k)
    if (k <= history) weight[k] = p.weight[at.channel * p.kernel_size + k];
#pragma unroll
  for (int i = 0; i < 2 * kMaxHistory; ++i) {
    if (i < history) {
      if (p.initial_history) x[i] = to_float(static_cast<const E*>(p.initial_history)[first + i * p.channels]);
    } else if (i - history < length) {
      x[i] = to_float(static_cast<const E*>(p.x.data)[(rows.begin + i - history) * p.x.stride + at.channel]);
    }
  }
  const float bias = p.bias ? p.bias[at.channel] : 0.f;
#pragma unroll
  for (int t = 0; t < kMaxHistory; ++t) {
    if (t >= history || t >= length) break;
    float d = to_float(static_cast<const E*>(p.d_y.data)[(rows.begin + t) * p.d_y.stride + at.channel]);
    if (p.silu) {
      float out = bias;
#pragma unroll
      for (int k = 0; k < kMaxKernelSize; ++k)
        if (t + k < 2 * kMaxHistory) out += weight[k] * x[t + k];  // weights from K on are zero
      const float s = sigmoid(out);
      d *= silu_grad(s, out * s);
    }
#pragma unroll
    for (int i = t; i < kMaxHistory; ++i)
      if (i < history) grad[i] += weight[i - t] * d;
  }
#pragma unroll
  for (int i = 0; i < kMaxHistory; ++i) {
    if (i >= history) break;
    if (p.d_final_history && i >= length)  // a sequence shorter than its history passes it on
      grad[i] += to_float(static_cast<const E*>(p.d_final_history)[first + (i - length) * p.channels]);
    static_cast<E*>(p.d_initial_history)[first + i * p.channels] = from_float<E>(grad[i]);
  }
}

template <typename E>
cudaError_t ConvKernels<E>::final_history(const ConvPlan& p, cudaStream_t stream) {
  return launch(conv_final_history_kernel<E>, ceil_div(p.sequences.num_sequences * p.channels, kConvThreads),
                kConvThreads, 0, stream, p);
}

template <typename E>
cudaError_t ConvKernels<E>::d_initial_history(const ConvPlan& p, cudaStream_t stream) {
  return launch(conv_d_initial_history_kernel<E>, ceil_div(p.sequences.num_sequences * p.channels, kConvThreads),
                kConvThreads, 0, stream, p);
}

}  // namespace recgrela::cuda
