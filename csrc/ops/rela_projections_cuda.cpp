// rela_projections on CUDA.
#include "cuda.h"
#include "kernels/rela_projections/params.h"
#include "rela_projections.h"

namespace recgrela::ops {
namespace {

// Parameters, and the operands that they point to.
struct ProjectionsCall {
  Tensor x;
  cuda::RelaProjectionsParams params;

  explicit ProjectionsCall(const RelaProjections::Operands& a) : x(aligned_rows(a.x)) {
    auto& p = params;
    RECGRELA_CHECK(a.dtype == ScalarType::Half || a.dtype == ScalarType::BFloat16,
                   "the CUDA kernels of rela_projections take float16 and bfloat16, not ",
                   torch::headeronly::toString(a.dtype));
    RECGRELA_CHECK(a.width() >= p.kMinWidth && a.width() <= p.kMaxWidth && a.width() % p.kUnit == 0,
                   "the CUDA kernels of rela_projections take widths of 32 to 64 in steps of 16, not ", a.width());
    RECGRELA_CHECK(a.outputs() % p.kUnit == 0 && a.outputs() <= p.kMaxOutputs,
                   "the CUDA kernels of rela_projections take up to ", p.kMaxOutputs,
                   " outputs of qk_weight, in steps of 16, not ", a.outputs());
    RECGRELA_CHECK(a.num_rows() <= p.kMaxRows, "the CUDA kernels take up to 2^30 rows, not ", a.num_rows());
    p.dtype = cuda_dtype(a.dtype), p.num_rows = a.num_rows(), p.eps = static_cast<float>(a.eps);
    p.width = static_cast<int>(a.width()), p.outputs = static_cast<int>(a.outputs());
    p.x = cuda_rows(x);
    p.norm_weight = data<float>(a.norm_weight), p.norm_bias = data<float>(a.norm_bias);
    p.in_weight = data<float>(a.in_weight), p.in_bias = data<float>(a.in_bias);
    p.gate_weight = data<float>(a.gate_weight), p.gate_bias = data<float>(a.gate_bias);
    p.qk_weight = data<float>(a.qk_weight), p.qk_bias = data<float>(a.qk_bias);
  }
};

struct Cuda {
  static void forward(const RelaProjections::Operands& a, const RelaProjections::Outputs& out) {
    ProjectionsCall call(a);
    RECGRELA_CHECK(a.outputs() > 0, "qk_weight must have outputs");
    call.params.v = cuda_rows(out.v), call.params.gate = cuda_rows(out.gate), call.params.qk = cuda_rows(out.qk);
    on_device(a.x, [&](cudaStream_t stream) { return cuda::rela_projections_forward(call.params, stream); });
  }

  static void backward(const RelaProjections::Operands& a, const RelaProjections::Gradients& grads) {
    ProjectionsCall call(a);
    const OptTensor v = aligned_rows(a.v), d_residual = aligned_rows(grads.d_residual), d_v = aligned_rows(grads.d_v);
    const OptTensor d_gate = aligned_rows(grads.d_gate), d_qk = aligned_rows(grads.d_qk);
    auto& p = call.params;
    p.v = cuda_rows(v), p.d_residual = cuda_rows(d_residual), p.d_v = cuda_rows(d_v);
    p.d_gate = cuda_rows(d_gate), p.d_qk = cuda_rows(d_qk), p.d_x = cuda_rows(grads.d_x);
    p.d_norm_weight = mutable_data<float>(grads.d_norm_weight);
    p.d_norm_bias = mutable_data<float>(grads.d_norm_bias);
    p.d_in_weight = mutable_data<float>(grads.d_in_weight), p.d_in_bias = mutable_data<float>(grads.d_in_bias);
    p.d_gate_weight = mutable_data<float>(grads.d_gate_weight);
    p.d_gate_bias = mutable_data<float>(grads.d_gate_bias);
    p.d_qk_weight = mutable_data<float>(grads.d_qk_weight), p.d_qk_bias = mutable_data<float>(grads.d_qk_bias);
    run_kernel(a.x, p, cuda::rela_projections_backward_workspace, cuda::rela_projections_backward);
  }
};

}  // namespace
}  // namespace recgrela::ops

RECGRELA_CUDA_OP(RelaProjections)
