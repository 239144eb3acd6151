// Plan of a causal_conv1d call: its parameters and how rows and channels are divided among threads.
#pragma once

#include "kernels/causal_conv1d/params.h"
#include "kernels/causal_conv1d/tuning.h"
#include "kernels/common/host.cuh"

namespace recgrela::cuda {

constexpr int kConvThreads = RECGRELA_CAUSAL_CONV1D_THREADS;
constexpr int kConvGroup = 4;  // adjacent channels that a thread processes

// Blocks for which registers are kept on a multiprocessor.
constexpr int kForwardBlocks = 32 * RECGRELA_CAUSAL_CONV1D_FORWARD_WARPS / kConvThreads;
constexpr int kBackwardBlocks = 32 * RECGRELA_CAUSAL_CONV1D_BACKWARD_WARPS / kConvThreads;

// Rows that a thread processes at a time, in registers: a row affects at most the step of the row K - 2 rows later.
constexpr int kForwardStep = 4;
template <typename E>
constexpr int kBackwardStep = sizeof(E) == 2 ? 4 : 2;

// Steps of a batch that is loaded ahead.
constexpr int kBatchSteps = RECGRELA_CAUSAL_CONV1D_ROWS / kForwardStep;
static_assert(RECGRELA_CAUSAL_CONV1D_ROWS % kForwardStep == 0, "RECGRELA_CAUSAL_CONV1D_ROWS must be 4 or 8");

// A run is run_rows consecutive rows, regardless of sequences. A thread processes one group of channels of a run; a
// block processes `runs` consecutive runs of block_groups groups.
struct ConvPlan : CausalConv1dParams {
  int groups = 0;             // of channels
  int columns = 0;            // blocks that cover the groups
  int block_groups = 0;       // groups per block
  int runs = 0;               // runs per block
  int run_rows = 0;           // a multiple of the rows of a batch
  int64_t row_blocks = 0;     // blocks that cover the rows
  bool whole = false;         // all channels of every group exist and are aligned, in every row and history
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
