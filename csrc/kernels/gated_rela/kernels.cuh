// The kernels of gated_rela for one element type, for all head widths. Included by two sources per type, so that they
// compile side by side, and one of them in little time.
#pragma once

#include <algorithm>
#include <type_traits>

#include "kernels/gated_rela/forward.cuh"
#include "kernels/gated_rela/backward.cuh"

namespace recgrela::cuda {

// Heads of 8 channels are half of a tile; the other half is zero. In launches of num_rooms teams, if there are rooms.
template <typename E, template <typename, int> class Memory, typename F>
cudaError_t launch_rela(const RelaPlan& plan, cudaStream_t stream, F kernel_of) {
  auto run = [&](auto head) {
    constexpr int kHead = decltype(head)::value;
    using T = Team<E, kHead>;
    constexpr size_t kBytes = T::kTeams * sizeof(Memory<E, kHead>);
    static_assert(kBytes <= 99 * 1024, "as much as a block can have on every GPU from sm_80 on");
    const int64_t works = plan.works(), step = plan.num_rooms > 0 ? plan.num_rooms : works;
    RelaPlan p = plan;
    for (; p.first_work < works; p.first_work += step) {
      const int64_t blocks = (std::min(works - p.first_work, step) + T::kTeams - 1) / T::kTeams;
      const cudaError_t error = launch(kernel_of(head), blocks, T::kThreads, kBytes, stream, p);
      if (error != cudaSuccess) return error;
    }
    return cudaSuccess;
  };
  switch (plan.head_dim) {
    case 8:
    case 16:
      return run(std::integral_constant<int, 16>{});
    case 32:
      return run(std::integral_constant<int, 32>{});
    case 64:
      return run(std::integral_constant<int, 64>{});
    case 128:
      return run(std::integral_constant<int, 128>{});
    default:
      return cudaErrorInvalidValue;
  }
}

template <typename E>
cudaError_t RelaKernels<E>::key_sums(const RelaPlan& plan, cudaStream_t stream) {
  return launch_rela<E, KeySumsMemory>(plan, stream,
                                       [](auto head) { return &key_sums_kernel<E, decltype(head)::value>; });
}
template <typename E>
cudaError_t RelaKernels<E>::query_sums(const RelaPlan& plan, cudaStream_t stream) {
  return launch_rela<E, QuerySumsMemory>(plan, stream,
                                         [](auto head) { return &query_sums_kernel<E, decltype(head)::value>; });
}
template <typename E>
cudaError_t RelaKernels<E>::forward(const RelaPlan& plan, cudaStream_t stream) {
  return launch_rela<E, ForwardMemory>(plan, stream,
                                       [](auto head) { return &forward_kernel<E, decltype(head)::value>; });
}
template <typename E>
cudaError_t RelaKernels<E>::backward(const RelaPlan& plan, cudaStream_t stream) {
  return launch_rela<E, BackwardMemory>(plan, stream,
                                        [](auto head) { return &backward_kernel<E, decltype(head)::value>; });
}

}  // namespace recgrela::cuda
