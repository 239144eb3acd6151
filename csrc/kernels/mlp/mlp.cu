// Host side of mlp: two linear layers, an activation between them and dropout after each, for narrow rows.
//
// The hidden layer never reaches memory. In the forward, a warp processes 16 rows, and the hidden layer is operands in
// its registers. The backward computes it again. A block holds the weights of a group of hidden columns, reads x and
// d_y and computes the gradients of these weights. For rows of up to 64 features and one or two groups it computes d_x
// too, and the groups' sums are added; else another kernel computes d_x. Gradients of weights are partial sums of
// persistent blocks, which are added in a fixed order.
#include <algorithm>

#include "kernels/common/reduce.cuh"
#include "kernels/common/workspace.cuh"
#include "kernels/mlp/schedule.cuh"

namespace recgrela::cuda {
namespace {

MlpPlan make_plan(const MlpParams& params) {
  MlpPlan p;
  static_cast<MlpParams&>(p) = params;
  if (p.max_shared_bytes == 0) p.max_shared_bytes = max_shared_bytes();
  p.rows = static_cast<int>(p.num_rows);
  p.hidden_stride = static_cast<uint32_t>(ceil_div(p.hidden, kTile) * kTile);
  const int width = std::max(p.in, p.out);
  p.tiles = width <= 64 ? 4 : width <= 128 ? 8 : 16;
  return p;
}

size_t lay_out(MlpPlan& p) {
  Workspace workspace(p.workspace);
  p.partials = workspace.take_floats(int64_t{p.row_blocks} * p.num_weights());
  if (p.fused && p.column_groups > 1) p.d_x_sums = workspace.take_floats(p.column_groups * p.num_rows * p.in);
  return workspace.size();
}

bool supported(const MlpParams& p) {
  const int max_width = p.dtype == DType::kFloat32 ? p.kMaxFloat32Width : p.kMaxWidth;
  auto takes = [&](int width) { return width > 0 && width % p.kUnit == 0 && width <= max_width; };
  return takes(p.in) && takes(p.out) && p.hidden > 0 && p.num_rows <= p.kMaxRows;
}

}  // namespace

size_t mlp_backward_workspace(const MlpParams& params) {
  if (!supported(params)) return 0;
  MlpPlan p = make_plan(params);
  dispatch_mlp(p.dtype, p.tiles, [&](auto kernels) { plan_columns(kernels, p); });
  return lay_out(p);
}

cudaError_t mlp_forward(const MlpParams& params, cudaStream_t stream) {
  if (!supported(params)) return cudaErrorInvalidValue;
  MlpPlan p = make_plan(params);
  return dispatch_mlp(p.dtype, p.tiles, [&](auto kernels) {
    plan_rows(kernels, p, 1);
    return kernels.forward(p, stream);
  });
}

cudaError_t mlp_backward(const MlpParams& params, cudaStream_t stream) {
  if (!supported(params)) return cudaErrorInvalidValue;
  MlpPlan p = make_plan(params);
  return dispatch_mlp(p.dtype, p.tiles, [&](auto kernels) {
    plan_columns(kernels, p);
    if (static_cast<int64_t>(kernels.column_bytes(p)) > p.max_shared_bytes) return cudaErrorInvalidValue;
    lay_out(p);
    if (!p.fused) {
      plan_rows(kernels, p, 2);
      RECGRELA_RETURN_IF_ERROR(kernels.d_rows(p, stream));
    }
    RECGRELA_RETURN_IF_ERROR(kernels.d_weights(p, stream));
    const StoreMlpGradients store{p.d_w1, p.d_w2, p.d_b1, p.d_b2, p.in, p.hidden, p.out};
    return add_partials(p.partials, p.row_blocks, p.num_weights(), store, stream);
  });
}

}  // namespace recgrela::cuda
