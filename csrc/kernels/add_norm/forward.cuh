// Forward of add_norm: a row is read once and stays in the registers of its lanes.
#pragma once

#include "kernels/add_norm/plan.cuh"

namespace recgrela::cuda {

template <typename E, int kLanes, int kGroups, bool kFull, bool kPostNorm>
__global__ void __launch_bounds__(kAddNormThreads, kForwardBlocks) add_norm_forward_kernel(const AddNormPlan p) {
  const RowLanes<kLanes, kGroups, kFull> lanes(p.width);
  const BranchFactors factors(p);
  RowPart<kGroups> weight, bias;
  lanes.load(lanes.at(p.weight), true, weight), lanes.load(lanes.at(p.bias), true, bias);
  const int num_rows = static_cast<int>(p.num_rows), step = gridDim.x * kAddNormThreads / kLanes;
#pragma unroll 1
  for (int own = (blockIdx.x * kAddNormThreads + threadIdx.x) / kLanes; own - lanes.row() < num_rows; own += step) {
    const bool active = own < num_rows;
    const uint32_t row = active ? own : num_rows - 1;  // lanes without a row compute the last one
    RowPart<kGroups> s;
    lanes.load(lanes.template at<const float>(p.x, row), true, s);
    add_branch<E>(p, lanes, factors, row, s);
    float* const residual = lanes.template at<float>(p.residual, row);
    const bool wanted = active && p.residual.data;
    if (!kPostNorm) lanes.store(residual, wanted, s);
    lanes.normalize(s, p.inverse_width, p.eps);
#pragma unroll
    for (int i = 0; i < 4 * kGroups; ++i)
      s.x[i / 4][i % 4] = s.x[i / 4][i % 4] * weight.x[i / 4][i % 4] + bias.x[i / 4][i % 4];
    if (kPostNorm) lanes.store(residual, wanted, s);
    lanes.store(lanes.template at<E>(p.normed, row), active, s);
  }
}

template <typename E>
cudaError_t AddNormKernels<E>::forward(const AddNormPlan& p, cudaStream_t stream) {
  return dispatch_width(p.width, [&](auto lanes, auto groups, auto full) {
    const auto kernel = p.post_norm ? add_norm_forward_kernel<E, lanes(), groups(), full(), true>
                                    : add_norm_forward_kernel<E, lanes(), groups(), full(), false>;
    return launch(kernel, p.blocks, kAddNormThreads, 0, stream, p);
  });
}

}  // namespace recgrela::cuda
