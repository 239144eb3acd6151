// Plan of an add_norm call, and the sum of the residual stream and its branch.
#pragma once

#include "kernels/add_norm/params.h"
#include "kernels/common/dropout.cuh"
#include "kernels/common/norm.cuh"

namespace recgrela::cuda {

constexpr int kAddNormThreads = 256;
// Blocks that a multiprocessor runs at once.
constexpr int kForwardBlocks = 4, kBackwardBlocks = 3;

// A block processes the rows of its warps, then those a grid of blocks further.
struct AddNormPlan : AddNormParams {
  int64_t blocks = 0;
  float inverse_width = 0;
  float* partials = nullptr;  // [blocks, 2, D]: sums of d_weight and d_bias; backward only
};

// The factors of a branch's elements by dropout and DropPath.
class BranchFactors {
 public:
  explicit __device__ BranchFactors(const AddNormParams& p)
      : dropout_(p.dropout), path_(p.drop_path), sequence_(p.sequence), width_(p.width) {}

  // Sets dropped elements of a row to zero, and returns the factor of the others.
  template <int kGroups, typename Lanes>
  __device__ float drop(const Lanes& lanes, uint32_t row, RowPart<kGroups>& branch) const {
    if (dropout_.active()) {
      const uint32_t first = row * width_ + lanes.column(0);
#pragma unroll
      for (int g = 0; g < kGroups; ++g) {
        bool kept[4];
        dropout_.keep_next(first + (lanes.column(g) - lanes.column(0)), kept);
#pragma unroll
        for (int i = 0; i < 4; ++i) branch.x[g][i] = kept[i] ? branch.x[g][i] : 0.f;
      }
    }
    if (!path_.active()) return dropout_.scale();
    return dropout_.scale() * path_.factor(sequence_ ? static_cast<uint32_t>(__ldg(sequence_ + row)) : row);
  }

 private:
  const DropoutHash dropout_, path_;
  const int64_t* const sequence_;
  const uint32_t width_;
};

// Adds a row of the branch, if there is one, to a row of the residual stream.
template <typename E, int kGroups, typename Lanes>
__device__ void add_branch(const AddNormParams& p, const Lanes& lanes, const BranchFactors& factors, uint32_t row,
                           RowPart<kGroups>& s) {
  if (!p.z.data) return;
  RowPart<kGroups> z;
  lanes.load(lanes.template at<const E>(p.z, row), true, z);
  const float factor = factors.drop(lanes, row, z);
#pragma unroll
  for (int i = 0; i < 4 * kGroups; ++i) s.x[i / 4][i % 4] += z.x[i / 4][i % 4] * factor;
}

// Kernels of one element type.
template <typename E>
struct AddNormKernels {
  static cudaError_t forward(const AddNormPlan& plan, cudaStream_t stream);
  // Stores d_x, d_z and the partial sums of the other gradients.
  static cudaError_t backward(const AddNormPlan& plan, cudaStream_t stream);
};

}  // namespace recgrela::cuda
