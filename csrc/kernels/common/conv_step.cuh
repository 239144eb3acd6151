// The depthwise convolution of the next row of a sequence, shared by causal_conv1d_step and gated_rela_step.
#pragma once

#include "kernels/common/device.cuh"

namespace recgrela::cuda {

// Returns the convolution of one channel at x, the next row, and moves x into the history [K - 1, width]. `history` and
// `weight` point to the channel; `weight` has its K weights.
template <typename E>
__device__ float convolve_next(float x, E* history, int64_t width, const float* weight, float bias, int kernel_size) {
  constexpr int kUnrolled = 3;  // rows that are all loaded before the first is stored
  const int rows = kernel_size - 1;
  float sum = bias + weight[rows] * x;
  if (rows <= kUnrolled) {
    float h[kUnrolled];
#pragma unroll
    for (int k = 0; k < kUnrolled; ++k) h[k] = k < rows ? to_float(history[k * width]) : 0.f;
#pragma unroll
    for (int k = 0; k < kUnrolled; ++k) {
      if (k >= rows) continue;
      sum += weight[k] * h[k];
      history[k * width] = from_float<E>(k + 1 < rows ? h[k + 1 < kUnrolled ? k + 1 : k] : x);
    }
  } else {
#pragma unroll 1
    for (int k = 0; k < rows; ++k) {
      sum += weight[k] * to_float(history[k * width]);
      history[k * width] = k + 1 < rows ? history[(k + 1) * width] : from_float<E>(x);
    }
  }
  return sum;
}

}  // namespace recgrela::cuda
