// Kernels of the backward for heads of 64 and 128 channels, and their launches.
#pragma once

#include <algorithm>

#include "kernels/gated_rela/wide/reverse.cuh"

namespace recgrela::cuda {

template <typename E, int kHead, bool kGradients>
__global__ void __launch_bounds__(GradientTeam<E, kHead>::kThreads, GradientTeam<E, kHead>::kBlocks)
    rela_wide_reverse_kernel(const RelaPlan p) {
  using T = GradientTeam<E, kHead>;
  auto& memory = *reinterpret_cast<GradientMemory<E, kHead>*>(dynamic_shared());
  for (unsigned unit = blockIdx.x; unit < p.num_units();) {
    T team(p, memory.unit);
    if (!kGradients) team.find_indices(computed_here(threadIdx.x));  // not held from one unit to the next
    const bool exists = team.find_unit(unit);
    // No segment comes before the first one of a causal sequence: its sums are not needed.
    if (exists && (kGradients || !p.causal || !team.segment.is_first())) {
      store_key_states(team, memory);
      __syncthreads();
      ReverseSweep<E, kHead, kGradients>(team, memory).run();
    } else if (kGradients && !exists && p.kernel_size > 0) {
      // The slot is empty: its partial sums are zero.
      float* const out = p.conv_partials + (team.segment.slot * p.width() + team.head_channel()) * (kMaxKernelSize + 1);
      for (int i = threadIdx.x; i < kHead * (kMaxKernelSize + 1); i += T::kThreads) out[i] = 0.f;
    }
    __syncthreads();
    unit = memory.unit.index + gridDim.x;  // not held in a register until here
    __syncthreads();
  }
}

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
