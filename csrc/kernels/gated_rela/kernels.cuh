// Launches of gated_rela's kernels for one element type and all head sizes. Two sources per type include it, so that
// the backward and the rest compile in parallel.
#pragma once

#include <algorithm>

#include "kernels/gated_rela/backward.cuh"
#include "kernels/gated_rela/narrow/backward.cuh"
#include "kernels/gated_rela/narrow/launch.cuh"
#include "kernels/gated_rela/wide/forward.cuh"
#include "kernels/gated_rela/wide/key_sums.cuh"

namespace recgrela::cuda {

// Launches a kernel for all units of work, num_teams teams at a time if the plan limits them. Heads of 8 channels are
// padded with zeros to a tile of 16.
template <typename E, template <typename, int> class Memory, int... kHeads, typename F>
cudaError_t launch_rela(const RelaPlan& plan, cudaStream_t stream, F kernel_of) {
  auto run = [&](auto head) {
    constexpr int kHead = decltype(head)::value;
    using T = Team<E, kHead>;
    constexpr size_t kBytes = T::kTeams * sizeof(Memory<E, kHead>);
    static_assert(kBytes <= 99 * 1024, "every GPU from sm_80 on gives a block this much shared memory");
    const int64_t units = plan.num_units(), step = plan.num_teams > 0 ? plan.num_teams : units;
    RelaPlan p = plan;
    for (; p.first_unit < units; p.first_unit += step) {
      const int64_t blocks = ceil_div(std::min(units - p.first_unit, step), T::kTeams);
      RECGRELA_RETURN_IF_ERROR(launch(kernel_of(head), blocks, T::kThreads, kBytes, stream, p));
    }
    return cudaSuccess;
  };
  return dispatch_value<kHeads...>(plan.head_dim == 8 ? 16 : plan.head_dim, run);
}

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
  return launch_rela<E, QuerySumsMemory, 64, 128>(
      plan, stream, [](auto head) { return &rela_query_sums_kernel<E, decltype(head)::value>; });
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
  return launch_rela<E, BackwardMemory, 64, 128>(
      plan, stream, [](auto head) { return &rela_backward_kernel<E, decltype(head)::value>; });
}

}  // namespace recgrela::cuda
