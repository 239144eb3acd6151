// causal_conv1d_step: a thread computes one channel of one sequence, and moves it into the history.
#include "kernels/causal_conv1d_step/params.h"
#include "kernels/common/activations.cuh"
#include "kernels/common/conv_step.cuh"
#include "kernels/common/host.cuh"

namespace recgrela::cuda {
namespace {

constexpr int kThreads = 256;

template <typename E>
__global__ void __launch_bounds__(kThreads) causal_conv1d_step_kernel(const CausalConv1dStepParams p) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= p.batch * p.channels) return;
  const int64_t b = i / p.channels, c = i % p.channels;
  const float x = to_float(static_cast<const E*>(p.x.data)[b * p.x.stride + c]), bias = p.bias ? p.bias[c] : 0.f;
  E* const history = static_cast<E*>(p.history.data) + b * p.history.stride + c;
  float y = convolve_next(x, history, p.channels, p.weight + c * p.kernel_size, bias, p.kernel_size);
  if (p.silu) y *= sigmoid(y);
  static_cast<E*>(p.y.data)[b * p.y.stride + c] = from_float<E>(y);
}

}  // namespace

cudaError_t causal_conv1d_step(const CausalConv1dStepParams& p, cudaStream_t stream) {
  return dispatch_dtype(p.dtype, [&](auto element) {
    using E = decltype(element);
    return launch(causal_conv1d_step_kernel<E>, ceil_div(p.batch * p.channels, kThreads), kThreads, 0, stream, p);
  });
}

}  // namespace recgrela::cuda
