// Boundaries of sequences among the rows of a block.
#pragma once

#include "kernels/causal_conv1d/plan.cuh"
#include "kernels/common/sequences.cuh"

namespace recgrela::cuda {

// Boundaries at the rows of a block and at K - 1 rows on each side, in shared memory. A step of kStep rows of a run
// has a flag if it must look for boundaries row by row: if a sequence begins or ends at one of its rows, or at one of
// the kReach rows before it. The runs of a warp share their flags, so that the warp takes one path if a run is 1, 2, 4,
// .. or 32 groups wide.
template <int K, int kStep, int kReach>
class Boundaries {
 public:
  // Bytes of shared memory for the blocks of a plan.
  static size_t size(const ConvPlan& p, bool has_ends) {
    const size_t rows = static_cast<size_t>(p.runs) * p.run_rows;
    return sizeof(int64_t) + sizeof(int32_t) * (has_ends ? 2 : 1) * (rows + 2 * (K - 1)) + rows / kStep;
  }

  // All threads of a block call it.
  __device__ Boundaries(const ConvPlan& p, int64_t first_row, bool has_ends)
      : run_rows_(p.run_rows), warp_runs_(p.block_groups < 32 ? 32 / p.block_groups : 1) {
    const Sequences& s = p.sequences;
    const int rows = p.runs * p.run_rows, count = rows + 2 * (K - 1);
    const int64_t base = first_row - (K - 1);
    int64_t* const first_offset = reinterpret_cast<int64_t*>(dynamic_shared());
    starts_ = reinterpret_cast<int32_t*>(first_offset + 1);
    ends_ = has_ends ? starts_ + count : nullptr;
    flags_ = reinterpret_cast<uint8_t*>(starts_ + (has_ends ? 2 : 1) * count);
    for (int i = threadIdx.x; i < count; i += kConvThreads) {
      starts_[i] = -1;
      if (ends_) ends_[i] = -1;
    }
    for (int i = threadIdx.x; i < rows / kStep; i += kConvThreads) flags_[i] = 0;
    if (threadIdx.x < 32) {
      const int64_t first = first_offset_from(s, base);
      if (threadIdx.x == 0) *first_offset = first;
    }
    __syncthreads();
    for (int64_t i = *first_offset + threadIdx.x; i <= s.num_sequences; i += kConvThreads) {
      const int64_t row = sequence_offset(s, i);
      if (row < base || row >= base + count) break;
      const int at = static_cast<int>(row - base);
      if (i < s.num_sequences && sequence_offset(s, i + 1) > row) starts_[at] = static_cast<int32_t>(i);
      if (ends_ && i > 0 && sequence_offset(s, i - 1) < row) ends_[at] = static_cast<int32_t>(i - 1);
      for (const int flagged : {at - (K - 1), at - (K - 1) + kReach})
        if (flagged >= 0 && flagged < rows) flags_[flag_of(flagged / run_rows_, flagged % run_rows_)] = 1;
    }
    __syncthreads();
  }

  // Moves to a run of the block: rows below count from its first row.
  __device__ void move_to(int run) {
    starts_ += run * run_rows_ + K - 1, flags_ += flag_of(run, 0);
    if (ends_) ends_ += run * run_rows_ + K - 1;
  }
  // The sequence that begins at a row, or that ends just before it; -1 if there is none.
  __device__ int32_t start(int row) const { return starts_[row]; }
  __device__ int32_t end(int row) const { return ends_ ? ends_[row] : -1; }
  // Whether the step at a row is flagged.
  __device__ bool flag(int row) const { return flags_[row / kStep]; }

 private:
  __device__ int flag_of(int run, int row) const { return run / warp_runs_ * (run_rows_ / kStep) + row / kStep; }

  int32_t *starts_, *ends_;
  uint8_t* flags_;
  int run_rows_, warp_runs_;
};

}  // namespace recgrela::cuda
