// Host side of mlp_block: a norm, mlp and the residual additions around them, for rows of up to 64 features.
//
// A warp of the forward reads its 16 rows and their branch, stores the sums and keeps their norms as operands; it adds
// the sums again behind the network. The backward is mlp's by columns, which finishes its rows in shared memory. With
// two groups of hidden columns, another kernel adds the groups' gradients of the normalized rows and finishes them.
#include "kernels/common/norm.cuh"
#include "kernels/common/reduce.cuh"
#include "kernels/common/workspace.cuh"
#include "kernels/mlp/schedule.cuh"

namespace recgrela::cuda {
namespace {

// Stores column i of the partial sums: those of mlp, then the norm's.
struct StoreMlpBlockGradients {
  StoreMlpGradients of_mlp;
  StoreNormGradients of_norm;
  int64_t size;  // of mlp's

  __device__ void operator()(int64_t i, float sum) const {
    if (i < size) {
      of_mlp(i, sum);
    } else {
      of_norm(i - size, sum);
    }
  }
};

MlpBlockPlan make_plan(const MlpBlockParams& params) {
  MlpBlockPlan p;
  static_cast<MlpParams&>(p) = params, static_cast<MlpNorm&>(p) = params;
  if (p.max_shared_bytes == 0) p.max_shared_bytes = max_shared_bytes();
  p.rows = static_cast<int>(p.num_rows), p.tiles = 4;
  p.hidden_stride = static_cast<uint32_t>(ceil_div(p.hidden, kTile) * kTile);
  p.inverse_width = 1.f / p.in;
  return p;
}

size_t lay_out(MlpBlockPlan& p) {
  Workspace workspace(p.workspace);
  p.partials = workspace.take_floats(int64_t{p.row_blocks} * p.num_weights());
  if (p.column_groups > 1) {
    p.norm_partials = workspace.take_floats(int64_t{p.row_blocks} * p.column_groups * 2 * p.in);
    p.d_x_sums = workspace.take_floats(p.column_groups * p.num_rows * p.in);
  }
  return workspace.size();
}

bool supported(const MlpBlockParams& p) {
  return p.in == p.out && p.in % p.kUnit == 0 && p.in >= p.kMinBlockWidth && p.in <= p.kMaxBlockWidth && p.hidden > 0 &&
         p.num_rows <= p.kMaxRows;
}

// Calls f(MlpBlockKernels<E>{}).
template <typename F>
cudaError_t dispatch(DType dtype, F f) {
  return dispatch_dtype(dtype, [&](auto element) { return f(MlpBlockKernels<decltype(element)>{}); });
}

// Plans the backward; returns whether there is one for these sizes on this device.
bool plan_backward(const MlpBlockParams& params, MlpBlockPlan& p) {
  if (!supported(params)) return false;
  p = make_plan(params);
  dispatch(p.dtype, [&](auto kernels) {
    plan_columns(typename decltype(kernels)::K{}, p);
    return cudaSuccess;
  });
  return p.fused;
}

}  // namespace

size_t mlp_block_backward_workspace(const MlpBlockParams& params) {
  MlpBlockPlan p;
  return plan_backward(params, p) ? lay_out(p) : 0;
}

cudaError_t mlp_block_forward(const MlpBlockParams& params, cudaStream_t stream) {
  if (!supported(params)) return cudaErrorInvalidValue;
  MlpBlockPlan p = make_plan(params);
  return dispatch(p.dtype, [&](auto kernels) {
    plan_rows(typename decltype(kernels)::K{}, p, 1);
    return kernels.forward(p, stream);
  });
}

cudaError_t mlp_block_backward(const MlpBlockParams& params, cudaStream_t stream) {
  MlpBlockPlan p;
  if (!plan_backward(params, p)) return cudaErrorInvalidValue;
  lay_out(p);
  RECGRELA_RETURN_IF_ERROR(dispatch(p.dtype, [&](auto kernels) { return kernels.backward(p, stream); }));
  const StoreMlpGradients of_mlp{p.d_w1, p.d_w2, p.d_b1, p.d_b2, p.in, p.hidden, p.out};
  const StoreNormGradients of_norm{p.d_norm_weight, p.d_norm_bias, p.in};
  const StoreMlpBlockGradients store{of_mlp, of_norm, p.MlpPlan::num_weights()};
  RECGRELA_RETURN_IF_ERROR(add_partials(p.partials, p.row_blocks, p.num_weights(), store, stream));
  if (p.column_groups == 1) return cudaSuccess;
  const int64_t norms = int64_t{p.row_blocks} * p.column_groups;
  return add_partials<8>(p.norm_partials, norms, 2 * p.in, of_norm, stream);
}

}  // namespace recgrela::cuda
