// Kernels of mlp_block: those of mlp for its plan, and the end of the backward if hidden columns are in several groups.
#pragma once

#include "kernels/mlp/block_rows.cuh"
#include "kernels/mlp/d_weights.cuh"
#include "kernels/mlp/forward.cuh"

namespace recgrela::cuda {

constexpr int kBlockRowThreads = 256;

// Adds the groups' gradients of the normalized rows and finishes the rows.
template <typename E>
__global__ void __launch_bounds__(kBlockRowThreads) mlp_block_d_rows_kernel(const MlpBlockPlan p) {
  const MlpBlockLanes lanes(p.in);
  const int64_t own = int64_t{blockIdx.x} * (kBlockRowThreads / 8) + threadIdx.x / 8;
  const bool active = own < p.rows;
  const uint32_t row = active ? static_cast<uint32_t>(own) : p.rows - 1;
  RowPart<2> s, d = {};
  lanes.load(lanes.at<const float>(p.x, row), true, s);
  for (int group = 0; group < p.column_groups; ++group) {
    const RowMatrix sums{p.d_x_sums + int64_t{group} * p.rows * p.in, p.in};
    RowPart<2> part;
    lanes.load(lanes.at<const float>(sums, row), true, part);
    add(d, part);
  }
  const float factor = lanes.normalize(s, p.inverse_width, p.eps);
  finish_row<E>(p, lanes, DropoutHash(p.drop_path), row, active, s, factor, d);
}

template <typename E>
cudaError_t MlpBlockKernels<E>::forward(const MlpBlockPlan& p, cudaStream_t stream) {
  return launch(mlp_forward_kernel<E, 4, MlpBlockPlan>, p.blocks, 32 * p.warps, K::row_bytes(p, 1), stream, p);
}

template <typename E>
cudaError_t MlpBlockKernels<E>::backward(const MlpBlockPlan& p, cudaStream_t stream) {
  RECGRELA_RETURN_IF_ERROR(launch(mlp_d_weights_kernel<E, 4, K::kStepRows, true, MlpBlockPlan>,
                                  int64_t{p.row_blocks} * p.column_groups, 32 * p.column_warps, K::column_bytes(p),
                                  stream, p));
  if (p.column_groups == 1) return cudaSuccess;
  return launch(mlp_block_d_rows_kernel<E>, ceil_div(p.num_rows * 8, kBlockRowThreads), kBlockRowThreads, 0, stream, p);
}

}  // namespace recgrela::cuda
