// Launches of the forward kernels of gated_rela for heads of up to 32 channels.
#pragma once

#include "kernels/gated_rela/narrow/forward.cuh"
#include "kernels/gated_rela/narrow/key_sums.cuh"

namespace recgrela::cuda::narrow {

template <typename E, int kHead, typename Memory>
cudaError_t launch_heads(void (*kernel)(RelaPlan), const RelaPlan& p, cudaStream_t stream) {
  constexpr int kWarps = Head<E, kHead>::kWarps;
  constexpr size_t kBytes = sizeof(Memory);
  static_assert(kBytes <= 99 * 1024, "every GPU from sm_80 on gives a block this much shared memory");
  return launch(kernel, ceil_div(p.num_units(), kWarps), 32 * kWarps, kBytes, stream, p);
}

template <typename E>
cudaError_t launch_key_sums(const RelaPlan& p, cudaStream_t stream) {
  return dispatch_value<16, 32>(std::max(p.head_dim, kTile), [&](auto head) {
    constexpr int kHead = decltype(head)::value;
    return launch_heads<E, kHead, KeySumsBlock<E, kHead>>(&rela_key_sums_kernel<E, kHead>, p, stream);
  });
}

template <typename E>
cudaError_t launch_forward(const RelaPlan& p, cudaStream_t stream) {
  return dispatch_value<16, 32>(std::max(p.head_dim, kTile), [&](auto head) {
    constexpr int kHead = decltype(head)::value;
    if (p.causal)
      return launch_heads<E, kHead, ForwardBlock<E, kHead, true>>(&rela_forward_kernel<E, kHead, true>, p, stream);
    return launch_heads<E, kHead, ForwardBlock<E, kHead, false>>(&rela_forward_kernel<E, kHead, false>, p, stream);
  });
}

}  // namespace recgrela::cuda::narrow
