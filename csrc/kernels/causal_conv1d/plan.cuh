// Plan of a causal_conv1d call: its parameters and how rows and channels are divided among threads.
#pragma once

#include "kernels/causal_conv1d/params.h"
#include "kernels/common/host.cuh"
#include "kernels/common/packed.cuh"

namespace recgrela::cuda {

constexpr int kConvThreads = 256;

// Adjacent channels that a thread processes: 16 bytes in the forward. The backward processes 4, since it uses five
// times as many registers per channel; 8 bytes of a 16-bit type still fill cache lines.
template <typename E>
constexpr int kForwardGroup = 16 / sizeof(E);
constexpr int kBackwardGroup = 4;

// A run is run_rows consecutive rows, regardless of sequences. A thread processes one group of channels of a run; a
// block processes `runs` consecutive runs of block_groups groups.
struct ConvPlan : CausalConv1dParams {
  int groups = 0;        // of channels
  int columns = 0;       // blocks that cover the groups
  int block_groups = 0;  // groups per block
  int runs = 0;          // runs per block
  int run_rows = 0;
  int64_t row_blocks = 0;     // blocks that cover the rows
  bool aligned = false;       // every row of every matrix is aligned to a group
  float* partials = nullptr;  // [row_blocks, K + 1, C]: gradients of the weights, then of the bias; backward only
};

// Calls f(K as a constant).
template <typename F>
cudaError_t dispatch_kernel_size(int kernel_size, F&& f) {
  return dispatch_value<1, 2, 3, 4>(kernel_size, f);
}

// Kernels of one element type.
template <typename E>
struct ConvKernels {
  static cudaError_t forward(const ConvPlan& plan, cudaStream_t stream);
  // Stores d_x and the partial sums of the other gradients.
  static cudaError_t backward(const ConvPlan& plan, cudaStream_t stream);
  static cudaError_t final_history(const ConvPlan& plan, cudaStream_t stream);
  static cudaError_t d_initial_history(const ConvPlan& plan, cudaStream_t stream);
};

}  // namespace recgrela::cuda
