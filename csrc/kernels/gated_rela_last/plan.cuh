// Plan of a gated_rela_last call: its parameters and how rows and heads are divided among threads.
#pragma once

#include "kernels/common/host.cuh"
#include "kernels/common/packed.cuh"
#include "kernels/common/segments.cuh"
#include "kernels/gated_rela_last/params.h"

namespace recgrela::cuda {

constexpr int kLastThreads = 128;  // of a block
// Blocks per multiprocessor for which the compiler limits registers; no kernel spills.
template <typename E>
constexpr int kLastForwardBlocks = sizeof(E) == 2 ? 6 : 8;
template <typename E>
constexpr int kLastBackwardBlocks = sizeof(E) == 2 ? 4 : 5;

// A thread processes 16 bytes of a row, and the adjacent lanes of a warp process a head. A block processes block_heads
// heads of one segment, row_slots rows at a time.
struct LastPlan : GatedRelaLastParams {
  SegmentPlan segments;
  int block_heads = 0;
  int columns = 0;  // blocks that cover the heads
  int row_slots = 0;
  float* partials = nullptr;       // sums over each segment; null unless sequences are cut
  float* conv_partials = nullptr;  // [B, D, K + 1]: gradients of the weights, then of the bias; backward only

  __host__ __device__ int width() const { return num_heads * head_dim; }
  __host__ __device__ int block_channels() const { return block_heads * head_dim; }
};

// Kernels of one element type.
template <typename E>
struct LastKernels {
  // Computes the wanted rows or, if sequences are cut, the sums over each segment, partials [slots, 2, D].
  static cudaError_t forward(const LastPlan& plan, cudaStream_t stream);
  // Computes the wanted rows from the sums over segments.
  static cudaError_t combine_forward(const LastPlan& plan, cudaStream_t stream);
  // Stores all gradients but those of the convolution's parameters, for which it stores partial sums. If sequences are
  // cut, it stores the sums for d_q over each segment, partials [slots, D].
  static cudaError_t backward(const LastPlan& plan, cudaStream_t stream);
  // Computes d_q from the sums over segments.
  static cudaError_t combine_backward(const LastPlan& plan, cudaStream_t stream);
};

// Calls f(the number of channels of a head as a constant).
template <typename F>
cudaError_t dispatch_head_dim(int head_dim, F&& f) {
  return dispatch_value<8, 16, 32, 64, 128>(head_dim, f);
}

}  // namespace recgrela::cuda
