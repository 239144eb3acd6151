// Check of sequences by a kernel of its own, for a forward that launches no other kernel because it has no work.
#pragma once

#include <algorithm>

#include "kernels/common/host.cuh"
#include "kernels/common/sequences.cuh"

namespace recgrela::cuda {

constexpr int kCheckThreads = 256;

struct SequenceCheck {
  Sequences sequences;
  const int64_t* initial_position;
  int64_t rotary_positions;
};

template <int kThreads>  // several sources may have a template
__global__ void __launch_bounds__(kThreads) check_sequences_kernel(const SequenceCheck check) {
  check_sequences(check.sequences, check.initial_position, check.rotary_positions);
}

inline cudaError_t launch_sequence_check(const Sequences& s, cudaStream_t stream,
                                         const int64_t* initial_position = nullptr, int64_t rotary_positions = 0) {
  const int64_t blocks = std::min<int64_t>(s.num_sequences / kCheckThreads + 1, 128);
  return launch(check_sequences_kernel<kCheckThreads>, blocks, kCheckThreads, 0, stream,
                SequenceCheck{s, initial_position, rotary_positions});
}

}  // namespace recgrela::cuda
