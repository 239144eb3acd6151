// selective_scan_step: a few lanes of a warp share the states of one channel, so that the state is read and written
// once in the order of memory.
#include <algorithm>

#include "kernels/common/activations.cuh"
#include "kernels/common/host.cuh"
#include "kernels/selective_scan_step/params.h"

namespace recgrela::cuda {
namespace {

constexpr int kThreads = 256, kWarp = 32;

struct StepPlan : SelectiveScanStepParams {
  int lanes = 1;  // of a channel, a power of two
};

template <int V>
struct alignas(V * sizeof(float)) Floats {
  float at[V];
};

// V: states that a lane loads with one instruction.
template <typename E, int V>
__global__ void __launch_bounds__(kThreads) selective_scan_step_kernel(const StepPlan p) {
  const int64_t i = (int64_t{blockIdx.x} * kThreads + threadIdx.x) / p.lanes;
  const int lane = static_cast<int>(threadIdx.x) % p.lanes;
  const bool valid = i < p.batch * p.channels;
  const int64_t b = valid ? i / p.channels : 0, c = valid ? i % p.channels : 0;
  auto element = [b](const RowMatrix& rows, int64_t column) {
    return to_float(static_cast<const E*>(rows.data)[b * rows.stride + column]);
  };
  float u = 0.f, y = 0.f;
  if (valid) {
    u = element(p.u, c);
    float step = element(p.delta, c) + (p.delta_bias ? p.delta_bias[c] : 0.f);
    if (p.delta_softplus) step = softplus(step);
    const float exponent = step * kLog2E, added = step * u;
    float* const state = p.state + b * p.state_stride + c * p.num_states;
    const float* const A = p.A + c * p.num_states;
#pragma unroll 2
    for (int s = lane * V; s < p.num_states; s += p.lanes * V) {
      const Floats<V> a = *reinterpret_cast<const Floats<V>*>(A + s);
      Floats<V> h = *reinterpret_cast<const Floats<V>*>(state + s);
#pragma unroll
      for (int k = 0; k < V; ++k) {
        h.at[k] = fast_exp2(exponent * a.at[k]) * h.at[k] + added * element(p.B, s + k);
        y += h.at[k] * element(p.C, s + k);
      }
      *reinterpret_cast<Floats<V>*>(state + s) = h;
    }
  }
#pragma unroll 1
  for (int lanes = 1; lanes < p.lanes; lanes *= 2) y += __shfl_xor_sync(0xffffffffu, y, lanes);
  if (!valid || lane != 0) return;
  if (p.D) y += p.D[c] * u;
  if (p.z.data) {
    const float z = element(p.z, c);
    y *= z * sigmoid(z);
  }
  static_cast<E*>(p.y.data)[b * p.y.stride + c] = from_float<E>(y);
}

}  // namespace

cudaError_t selective_scan_step(const SelectiveScanStepParams& params, cudaStream_t stream) {
  StepPlan p;
  static_cast<SelectiveScanStepParams&>(p) = params;
  auto aligned = [](const float* x) { return reinterpret_cast<uintptr_t>(x) % 16 == 0; };
  const bool vectors = p.num_states % 4 == 0 && p.state_stride % 4 == 0 && aligned(p.A) && aligned(p.state);
  const int64_t wanted = ceil_div(p.num_states, vectors ? 4 : 1);
  while (p.lanes < std::min<int64_t>(wanted, kWarp)) p.lanes *= 2;
  const int64_t blocks = ceil_div(p.batch * p.channels * p.lanes, kThreads);
  return dispatch_dtype(p.dtype, [&](auto element) {
    using E = decltype(element);
    const auto kernel = vectors ? selective_scan_step_kernel<E, 4> : selective_scan_step_kernel<E, 1>;
    return launch(kernel, blocks, kThreads, 0, stream, p);
  });
}

}  // namespace recgrela::cuda
