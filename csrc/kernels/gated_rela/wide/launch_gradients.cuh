// Launches of the backward's kernels for heads of 64 and 128 channels.
#pragma once

#include <algorithm>

#include "kernels/gated_rela/wide/reverse.cuh"

namespace recgrela::cuda {

// Teams process units of work num_teams apart.
template <typename E, bool kGradients>
cudaError_t launch_wide_reverse(const RelaPlan& plan, cudaStream_t stream) {
  return dispatch_value<64, 128>(plan.head_dim, [&](auto head) {
    constexpr int kHead = decltype(head)::value;
    constexpr size_t kBytes = sizeof(GradientMemory<E, kHead>);
    static_assert(kBytes <= 99 * 1024, "every GPU from sm_80 on gives a block this much shared memory");
    return launch(&rela_wide_reverse_kernel<E, kHead, kGradients>, std::min(plan.num_units(), plan.num_teams),
                  GradientTeam<E, kHead>::kThreads, kBytes, stream, plan);
  });
}

template <typename E>
cudaError_t RelaKernels<E>::wide_query_sums(const RelaPlan& plan, cudaStream_t stream) {
  return launch_wide_reverse<E, false>(plan, stream);
}
template <typename E>
cudaError_t RelaKernels<E>::wide_backward(const RelaPlan& plan, cudaStream_t stream) {
  return launch_wide_reverse<E, true>(plan, stream);
}

}  // namespace recgrela::cuda
