// Launches of gated_rela's kernels for one element type and all head sizes. Two sources per type include it, so that
// the backward and the rest compile in parallel.
#pragma once

#include <algorithm>

#include "kernels/gated_rela/narrow/backward.cuh"
#include "kernels/gated_rela/narrow/launch.cuh"
#include "kernels/gated_rela/wide/forward.cuh"
#include "kernels/gated_rela/wide/key_sums.cuh"

namespace recgrela::cuda {

// Launches a kernel of the forward for heads of 64 or 128 channels.
template <typename E, template <typename, int> class Memory, typename F>
cudaError_t launch_wide(const RelaPlan& plan, cudaStream_t stream, F kernel_of) {
  return dispatch_value<64, 128>(plan.head_dim, [&](auto head) {
    constexpr int kHead = decltype(head)::value;
    constexpr size_t kBytes = sizeof(Memory<E, kHead>);
    static_assert(kBytes <= 99 * 1024, "every GPU from sm_80 on gives a block this much shared memory");
    return launch(kernel_of(head), plan.num_units(), WideTeam<E, kHead>::kThreads, kBytes, stream, plan);
  });
}

template <typename E>
cudaError_t RelaKernels<E>::key_sums(const RelaPlan& plan, cudaStream_t stream) {
  if (plan.head_dim > 32)
    return launch_wide<E, WideKeySumsMemory>(
        plan, stream, [](auto head) { return &rela_wide_key_sums_kernel<E, decltype(head)::value>; });
  return narrow::launch_key_sums<E>(plan, stream);
}
template <typename E>
cudaError_t RelaKernels<E>::query_sums(const RelaPlan& plan, cudaStream_t stream) {
  if (plan.head_dim <= 32)
    return narrow::launch_teams<E>(plan, stream, [](auto head, auto causal) {
      return &narrow::rela_query_sums_kernel<E, decltype(head)::value, decltype(causal)::value>;
    });
  return wide_query_sums(plan, stream);
}
template <typename E>
cudaError_t RelaKernels<E>::forward(const RelaPlan& plan, cudaStream_t stream) {
  if (plan.head_dim > 32)
    return launch_wide<E, WideForwardMemory>(
        plan, stream, [](auto head) { return &rela_wide_forward_kernel<E, decltype(head)::value>; });
  return narrow::launch_forward<E>(plan, stream);
}
template <typename E>
cudaError_t RelaKernels<E>::backward(const RelaPlan& plan, cudaStream_t stream) {
  if (plan.head_dim <= 32)
    return narrow::launch_teams<E>(plan, stream, [](auto head, auto causal) {
      return &narrow::rela_backward_kernel<E, decltype(head)::value, decltype(causal)::value>;
    });
  return wide_backward(plan, stream);
}

}  // namespace recgrela::cuda
