// Plan of an embedding call: its parameters and what the host derives from them.
#pragma once

#include "kernels/common/host.cuh"
#include "kernels/embedding/params.h"

namespace recgrela::cuda {

constexpr int kEmbeddingThreads = 256;
constexpr int kSortThreads = 256, kSortWarps = kSortThreads / 32;

struct EmbeddingPlan : EmbeddingParams {
  // The sort: `passes` passes over digits of `digit_bits` bits, by sort_blocks blocks.
  int passes = 0;
  int sort_blocks = 0;
  int2* sorted = nullptr;     // [T], (item, row), after the last pass
  int2* unsorted = nullptr;   // [T], between passes
  int32_t* counts = nullptr;  // [sort_blocks, bins], rows before a block's first of each digit
  int32_t* totals = nullptr;  // [bins]

  // The sums: a block adds block_rows sorted rows, `piece` by each of its teams.
  int block_rows = 0;
  int64_t blocks = 0;
  // [blocks, 2, D], sums of runs of one item that cross the border of a block: of the run that begins in an earlier
  // block, and of the one that begins in this block and continues in the next
  float* crossing = nullptr;
  float* d_parameters = nullptr;  // [blocks, 2, D], sums for d_weight and d_bias

  __host__ __device__ int bins() const { return 1 << digit_bits; }
};

cudaError_t launch_embedding_forward(const EmbeddingPlan& plan, cudaStream_t stream);
// Sorts the rows by item, equal items in the order of their rows, and sets d_table to zero.
cudaError_t launch_embedding_sort(const EmbeddingPlan& plan, cudaStream_t stream);
// Adds the sorted rows of each item.
cudaError_t launch_embedding_sums(const EmbeddingPlan& plan, cudaStream_t stream);

}  // namespace recgrela::cuda
