// Host side of add_norm: the sum of the residual stream and a branch, and its LayerNorm.
//
// Everything of a row happens between one read and one write: dropout and DropPath by hash, the sum, its mean and
// variance, the norm. The backward recomputes these from the sum (pre-norm) or from both operands (post-norm). Warps
// iterate over rows, so that weights are loaded once and each block has one partial sum of their gradients.
#include <algorithm>

#include "kernels/add_norm/plan.cuh"
#include "kernels/common/reduce.cuh"
#include "kernels/common/workspace.cuh"

namespace recgrela::cuda {
namespace {

AddNormPlan make_plan(const AddNormParams& params, int blocks_per_multiprocessor) {
  AddNormPlan p;
  static_cast<AddNormParams&>(p) = params;
  p.inverse_width = 1.f / p.width;
  dispatch_width(p.width, [&](auto lanes, auto, auto) {
    p.blocks = std::min<int64_t>(ceil_div(p.num_rows, kAddNormThreads / lanes),
                                 int64_t{blocks_per_multiprocessor} * multiprocessors());
    return cudaSuccess;
  });
  return p;
}

// Places the partial sums of the backward in the workspace; returns its size.
size_t lay_out(AddNormPlan& p) {
  Workspace workspace(p.workspace);
  p.partials = workspace.take_floats(p.blocks * 2 * p.width);
  return workspace.size();
}

bool supported(const AddNormParams& p) {
  for (const RowMatrix* rows : {&p.x, &p.residual, &p.d_residual, &p.d_x})
    if (!is_aligned(*rows, DType::kFloat32, 16) || rows->stride >= p.kMaxStride) return false;
  for (const RowMatrix* rows : {&p.z, &p.normed, &p.d_normed, &p.d_z})
    if (!is_aligned(*rows, p.dtype, 4 * size_of(p.dtype)) || rows->stride >= p.kMaxStride) return false;
  return p.width >= p.kMinWidth && p.width <= p.kMaxWidth && p.width % p.kWidthStep == 0 && p.num_rows <= p.kMaxRows;
}

}  // namespace

size_t add_norm_backward_workspace(const AddNormParams& params) {
  if (!supported(params)) return 0;
  AddNormPlan p = make_plan(params, kBackwardBlocks);
  return lay_out(p);
}

cudaError_t add_norm_forward(const AddNormParams& params, cudaStream_t stream) {
  if (!supported(params)) return cudaErrorInvalidValue;
  const AddNormPlan p = make_plan(params, kForwardBlocks);
  return dispatch_dtype(p.dtype, [&](auto element) { return AddNormKernels<decltype(element)>::forward(p, stream); });
}

cudaError_t add_norm_backward(const AddNormParams& params, cudaStream_t stream) {
  if (!supported(params)) return cudaErrorInvalidValue;
  AddNormPlan p = make_plan(params, kBackwardBlocks);
  lay_out(p);
  RECGRELA_RETURN_IF_ERROR(
      dispatch_dtype(p.dtype, [&](auto element) { return AddNormKernels<decltype(element)>::backward(p, stream); }));
  return add_partials<8>(p.partials, p.blocks, 2 * p.width, StoreNormGradients{p.d_weight, p.d_bias, p.width}, stream);
}

}  // namespace recgrela::cuda
