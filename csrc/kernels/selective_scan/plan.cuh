// Plan of a selective_scan call: its parameters and what the host derives from them.
#pragma once

#include "kernels/common/segments.cuh"
#include "kernels/selective_scan/params.h"
#include "kernels/selective_scan/tuning.h"

namespace recgrela::cuda {

// Blocks of the forward and of the sums over segments.
constexpr int kScanResident = RECGRELA_SELECTIVE_SCAN_FORWARD_RESIDENT;
// Threads of a block, at most. Where a channel takes many lanes, larger blocks share the rows of B and C.
constexpr int scan_threads(int lanes) { return lanes < 4 ? 128 : 256; }

struct ScanBlocks {
  int lanes = 1, states = 16;     // lanes of a channel, and states of a lane
  int threads = 0, channels = 0;  // of a block
  int columns = 0;                // blocks that cover the channels
};

struct SelectivePlan : SelectiveScanParams {
  SegmentPlan segments;
  ScanBlocks scan;
  float* segment_states = nullptr;  // [slots, C, N]: final states from a zero state, then initial states
  float* segment_steps = nullptr;   // [slots, C]: sums of the steps d_i

  // The backward runs persistent blocks. Each processes every persistent_blocks-th slot of a column and stores one
  // partial sum of the gradients of A, D and delta_bias.
  int64_t persistent_blocks = 0;
  int backward_threads = 0, backward_channels = 0;            // of a block
  int backward_columns = 0;                                   // blocks that cover the channels
  bool rows_aligned = false;                                  // rows of [T, C] may be read by vectors of 4 elements
  bool states_aligned = false;                                // likewise rows of B, C, d_B and d_C
  float* d_A_partials = nullptr;                              // [persistent_blocks, C, N]
  float *d_D_partials = nullptr, *d_bias_partials = nullptr;  // [persistent_blocks, C]
  // Partial sums of d_B and d_C by column, unless there is one column. A launch covers launch_columns columns, for
  // which the partial sums take about as much memory as four float32 matrices of u's shape.
  int launch_columns = 0, first_column = 0;
  float* row_partials = nullptr;  // [launch_columns, T, 2 N]
  float* row_sums = nullptr;      // [T, 2 N]: sums of earlier launches

  __host__ __device__ int64_t state_size() const { return channels * num_states; }
};

// Kernels of one element type.
template <typename E>
struct SelectiveKernels {
  // Computes the final state of each segment that starts from zero, and the sum of its steps. Skips the last segment in
  // the direction of the scan.
  static cudaError_t sum_segments(const SelectivePlan& plan, bool reverse, cudaStream_t stream);
  static cudaError_t forward(const SelectivePlan& plan, cudaStream_t stream);
  // Runs the backward of launch_columns columns from first_column on.
  static cudaError_t backward(const SelectivePlan& plan, cudaStream_t stream);
  // Adds the partial sums of d_B and d_C of that launch.
  static cudaError_t add_row_partials(const SelectivePlan& plan, cudaStream_t stream);
};

}  // namespace recgrela::cuda
