// Host side of rela_projections: LayerNorm of the residual stream, the projections to values and gate, and that of the
// values to queries and keys.
//
// Everything of a row happens between one read and one write, in both passes. The backward adds the gradient of the
// residual stream that continues after the op, and its partial sums of all parameters' gradients are added at once.
#include "kernels/common/reduce.cuh"
#include "kernels/common/workspace.cuh"
#include "kernels/rela_projections/plan.cuh"

namespace recgrela::cuda {
namespace {

// Stores the columns of the partial sums to one gradient after the other.
struct StoreProjectionGradients {
  static constexpr int kGradients = 8;
  float* to[kGradients];
  int64_t sizes[kGradients];

  __device__ void operator()(int64_t column, float sum) const {
#pragma unroll
    for (int i = 0; i < kGradients; ++i) {
      if (column >= 0 && column < sizes[i] && to[i]) to[i][column] = sum;
      column -= sizes[i];
    }
  }
};

bool supported(const RelaProjectionsParams& p) {
  auto is_width = [](int width, int max) {
    return width >= 0 && width % RelaProjectionsParams::kUnit == 0 && width <= max;
  };
  for (const RowMatrix* rows : {&p.x, &p.d_residual, &p.d_x})
    if (!is_aligned(*rows, DType::kFloat32, 16)) return false;
  for (const RowMatrix* rows : {&p.v, &p.gate, &p.qk, &p.d_v, &p.d_gate, &p.d_qk})
    if (!is_aligned(*rows, p.dtype, 16)) return false;
  return p.dtype != DType::kFloat32 && p.width >= p.kMinWidth && is_width(p.width, p.kMaxWidth) &&
         is_width(p.outputs, p.kMaxOutputs) && p.num_rows >= 0 && p.num_rows <= p.kMaxRows;
}

template <typename F>
cudaError_t dispatch_half(DType dtype, F f) {
  return dtype == DType::kFloat16 ? f(RelaProjectionsKernels<fp16>{}) : f(RelaProjectionsKernels<bf16>{});
}

RelaProjectionsPlan make_plan(const RelaProjectionsParams& params) {
  RelaProjectionsPlan p;
  static_cast<RelaProjectionsParams&>(p) = params;
  if (p.max_shared_bytes == 0) p.max_shared_bytes = max_shared_bytes();
  p.rows = static_cast<int>(p.num_rows), p.inverse_width = 1.f / p.width;
  p.num_gradients = p.all_outputs() * (p.width + 1) + 2 * p.width;
  return p;
}

// Divides the work of the backward and places its partial sums in the workspace; returns its size.
size_t lay_out(RelaProjectionsPlan& p) {
  dispatch_half(p.dtype, [&](auto kernels) {
    kernels.plan_backward(p);
    return cudaSuccess;
  });
  Workspace workspace(p.workspace);
  p.partials = workspace.take_floats(int64_t{p.row_blocks} * p.num_gradients);
  return workspace.size();
}

}  // namespace

size_t rela_projections_backward_workspace(const RelaProjectionsParams& params) {
  if (!supported(params)) return 0;
  RelaProjectionsPlan p = make_plan(params);
  return lay_out(p);
}

cudaError_t rela_projections_forward(const RelaProjectionsParams& params, cudaStream_t stream) {
  if (!supported(params) || params.outputs == 0) return cudaErrorInvalidValue;
  RelaProjectionsPlan p = make_plan(params);
  return dispatch_half(p.dtype, [&](auto kernels) { return kernels.forward(p, stream); });
}

cudaError_t rela_projections_backward(const RelaProjectionsParams& params, cudaStream_t stream) {
  if (!supported(params)) return cudaErrorInvalidValue;
  RelaProjectionsPlan p = make_plan(params);
  lay_out(p);
  RECGRELA_RETURN_IF_ERROR(dispatch_half(p.dtype, [&](auto kernels) {
    return kernels.plan_backward(p) ? kernels.backward(p, stream) : cudaErrorInvalidValue;
  }));
  const int64_t d = p.width, gate = p.has_gate() ? d : 0, n = p.outputs;
  const StoreProjectionGradients store{{p.d_in_weight, p.d_gate_weight, p.d_qk_weight, p.d_in_bias, p.d_gate_bias,
                                        p.d_qk_bias, p.d_norm_weight, p.d_norm_bias},
                                       {d * d, gate * d, n * d, d, gate, n, d, d}};
  return add_partials(p.partials, p.row_blocks, p.num_gradients, store, stream);
}

}  // namespace recgrela::cuda
