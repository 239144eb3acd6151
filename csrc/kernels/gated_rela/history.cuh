// History of a sequence's values, from which a later call continues the convolution.
#pragma once

#include "kernels/gated_rela/plan.cuh"

namespace recgrela::cuda {

// Stores the last K - 1 values of a sequence, including its initial history, at the channels of a head. `threads`
// threads call it.
template <typename E>
__device__ void store_final_history(const RelaPlan& p, const RelaSegment& segment, int64_t first_channel, int thread,
                                    int threads) {
  const int rows = p.kernel_size - 1;
  const int64_t width = p.width();
  const E* const initial = static_cast<const E*>(p.initial_history);
  for (int i = thread; i < rows * p.head_dim; i += threads) {
    const int row = i / p.head_dim;
    const int64_t channel = first_channel + i % p.head_dim, from = segment.sequence_end - rows + row;
    E x = from_float<E>(0.f);
    if (from >= segment.sequence_begin)
      x = static_cast<const E*>(p.v.data)[from * p.v.stride + channel];
    else if (initial)
      x = initial[(segment.sequence * rows + rows + from - segment.sequence_begin) * width + channel];
    static_cast<E*>(p.final_history)[(segment.sequence * rows + row) * width + channel] = x;
  }
}

}  // namespace recgrela::cuda
