// Backward of add_norm: computes each row's norm again, and adds the gradients of weight and bias over the block's rows
// in registers.
#pragma once

#include "kernels/add_norm/plan.cuh"

namespace recgrela::cuda {

template <typename E, int kLanes, int kGroups, bool kFull, bool kPostNorm>
__global__ void __launch_bounds__(kAddNormThreads, kBackwardBlocks) add_norm_backward_kernel(const AddNormPlan p) {
  const RowLanes<kLanes, kGroups, kFull> lanes(p.width);
  const BranchFactors factors(p);
  RowPart<kGroups> weight;
  lanes.load(lanes.at(p.weight), true, weight);
  NormGradients<kLanes, kGroups, kFull> sums;
  const int num_rows = static_cast<int>(p.num_rows), step = gridDim.x * kAddNormThreads / kLanes;
#pragma unroll 1
  for (int own = (blockIdx.x * kAddNormThreads + threadIdx.x) / kLanes; own - lanes.row() < num_rows; own += step) {
    const bool active = own < num_rows;
    const uint32_t row = active ? own : num_rows - 1;  // lanes without a row compute with gradients of zero
    RowPart<kGroups> s, d_residual, d;
    lanes.load(lanes.template at<const float>(p.x, row), true, s);
    lanes.load(lanes.template at<const float>(p.d_residual, row), active && p.d_residual.data, d_residual);
    lanes.load(lanes.template at<const E>(p.d_normed, row), active && p.d_normed.data, d);
    if (kPostNorm) add_branch<E>(p, lanes, factors, row, s);
    const float factor = lanes.normalize(s, p.inverse_width, p.eps);
    if (kPostNorm) add(d, d_residual);
    sums.add(lanes, weight, s, factor, p.inverse_width, d);
    if (!kPostNorm) add(d, d_residual);
    lanes.store(lanes.template at<float>(p.d_x, row), active, d);
    if (p.d_z.data) {
      const float kept = factors.drop(lanes, row, d);
#pragma unroll
      for (int i = 0; i < 4 * kGroups; ++i) d.x[i / 4][i % 4] *= kept;
      lanes.store(lanes.template at<E>(p.d_z, row), active, d);
    }
  }
  sums.store(lanes, p.width, p.partials + int64_t{blockIdx.x} * 2 * p.width);
}

template <typename E>
cudaError_t AddNormKernels<E>::backward(const AddNormPlan& p, cudaStream_t stream) {
  return dispatch_width(p.width, [&](auto lanes, auto groups, auto full) {
    const auto kernel = p.post_norm ? add_norm_backward_kernel<E, lanes(), groups(), full(), true>
                                    : add_norm_backward_kernel<E, lanes(), groups(), full(), false>;
    const size_t shared = NormGradients<lanes(), groups(), full()>::shared_bytes(p.width, kAddNormThreads);
    return launch(kernel, p.blocks, kAddNormThreads, shared, stream, p);
  });
}

}  // namespace recgrela::cuda
