// Plan of a linear call: its parameters and how rows and columns are divided among blocks.
#pragma once

#include "kernels/common/host.cuh"
#include "kernels/linear/params.h"

namespace recgrela::cuda {

// Two blocks of the forward fit on a multiprocessor; float32 needs more registers.
template <typename E>
constexpr int kForwardThreads = sizeof(E) == 4 ? 192 : 256;
template <typename E>
constexpr int kForwardWarps = kForwardThreads<E> / 32;

constexpr int kBackwardThreads = 256;
constexpr int kBackwardRows = 64;  // rows that a block of the backward stages at a time
constexpr int kChunkColumns = 64;  // columns of d_y that it stages at a time
constexpr int kChunkTiles = kChunkColumns / 16;

// A matrix whose addresses take few instructions.
struct PlanRows {
  void* data = nullptr;
  int stride = 0;

  template <typename E>
  __device__ E* row(int i) const {
    return static_cast<E*>(data) + int64_t{i} * stride;
  }
};

struct LinearPlan {
  int num_rows = 0, width = 0;
  int outputs = 0, first_outputs = 0;  // of both layers, N, and of the first
  const float *weights[2] = {}, *biases[2] = {};
  PlanRows x, rows[2];  // rows: y in the forward, d_y in the backward
  PlanRows d_x, d_passed;
  int max_shared_bytes = 0;  // of a block

  // Blocks of a slice process the same columns: groups of outputs in the forward, columns of x in the backward.
  int slices = 0;
  int row_tiles = 0;   // tiles of rows: 16 rows of a warp in the forward, kBackwardRows of a block in the backward
  int row_blocks = 0;  // blocks per slice; each iterates over tiles of rows
  int row_step = 0;    // rows between two tiles of a block; backward only, like the next
  int64_t x_step = 0;  // elements of x between them
  int chunks = 0;      // parts of the inner dimension: columns of x in the forward, of d_y in the backward
  int groups = 0;      // of outputs; forward only, like the next
  int slice_groups = 0;
  // Gradients of the weights [N, I], then of the biases [N] unless both are absent; backward only.
  float* partials = nullptr;  // [row_blocks, num_gradients]
  int num_gradients = 0;

  __host__ __device__ bool has_bias() const { return biases[0] || biases[1]; }
  // Selected without a load, which the index of an array would need.
  __device__ const float* weight_of(bool second) const { return second ? weights[1] : weights[0]; }
  __device__ const float* bias_of(bool second) const { return second ? biases[1] : biases[0]; }
  __device__ PlanRows rows_of(bool second) const {
    return {second ? rows[1].data : rows[0].data, second ? rows[1].stride : rows[0].stride};
  }
};

// Starts to load a tile of d_passed, if there is one, into the L2 cache: its elements are added when d_x is stored.
template <typename E, int kRows, int kColumns>
__device__ void prefetch_passed(const LinearPlan& p, int first_row, int first_column) {
  constexpr int kLine = 128 / sizeof(E), kLines = (kColumns + kLine - 1) / kLine;
  const int i = threadIdx.x, row = first_row + i / kLines, column = first_column + i % kLines * kLine;
  if (p.d_passed.data && i < kRows * kLines && row < p.num_rows && column < p.width)
    prefetch_line(p.d_passed.row<const E>(row) + column);
}

// Kernels of one element type.
template <typename E>
struct LinearKernels {
  static cudaError_t forward(LinearPlan& plan, cudaStream_t stream);
  // Divides the work of the backward.
  static void plan_backward(LinearPlan& plan);
  // Stores d_x and the partial sums of the other gradients.
  static cudaError_t backward(const LinearPlan& plan, cudaStream_t stream);
};

}  // namespace recgrela::cuda
