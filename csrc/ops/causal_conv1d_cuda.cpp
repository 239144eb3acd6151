// The operator causal_conv1d on CUDA.
#include "causal_conv1d.h"
#include "kernels/causal_conv1d/params.h"
#include "cuda.h"

namespace recgrela::ops {
namespace {

struct CudaConvArgs {
  ConvArgs a;
  cuda::CausalConv1dParams p;

  explicit CudaConvArgs(ConvArgs args) : a(std::move(args)) {
    p.dtype = cuda_dtype(a.x);
    STD_TORCH_CHECK(a.width() <= 4, "the CUDA kernels take convolutions of up to 4 taps, not ", a.width());
    p.sequences = cuda_sequences(a.cu_seqlens, a.x.size(0));
    p.channels = a.channels(), p.kernel_size = static_cast<int>(a.width()), p.silu = a.silu;
    p.x = cuda_rows(a.x);
    p.weight = a.weight.const_data_ptr(), p.bias = data<char>(a.bias);
    p.initial_history = data<char>(a.values);
  }
};

std::tuple<Tensor, Tensor> causal_conv1d(const Tensor& x, const Tensor& weight, const OptTensor& bias,
                                         const Tensor& cu_seqlens, const OptTensor& initial_values, bool silu,
                                         bool return_final_values) {
  CudaConvArgs args(ConvArgs(x, weight, bias, cu_seqlens, initial_values, silu));
  const ConvOutputs out(args.a, return_final_values);
  args.p.y = cuda_rows(out.y);
  if (return_final_values) args.p.final_history = out.values.mutable_data_ptr();
  on_device(args.a.x, [&](cudaStream_t stream) { return cuda::causal_conv1d_forward(args.p, stream); });
  return {out.y, out.values};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> causal_conv1d_backward(const Tensor& dy, const OptTensor& d_final_values,
                                                                  const Tensor& x, const Tensor& weight,
                                                                  const OptTensor& bias, const Tensor& cu_seqlens,
                                                                  const OptTensor& initial_values, bool silu) {
  CudaConvArgs args(ConvArgs(x, weight, bias, cu_seqlens, initial_values, silu));
  const ConvGradients grads(args.a, dy, d_final_values);
  cuda::CausalConv1dParams& p = args.p;
  p.d_y = cuda_rows(grads.dy), p.d_x = cuda_rows(grads.dx);
  p.d_weight = grads.dw.mutable_data_ptr();
  if (bias) p.d_bias = grads.db.mutable_data_ptr();
  p.d_final_history = data<char>(grads.d_values);
  if (args.a.values) p.d_initial_history = grads.d_initial_values.mutable_data_ptr();
  on_device(args.a.x, [&](cudaStream_t stream) {
    const Tensor workspace = make_workspace(args.a.x, cuda::causal_conv1d_backward_workspace(p));
    p.workspace = workspace.mutable_data_ptr();
    return cuda::causal_conv1d_backward(p, stream);
  });
  return {grads.dx, grads.dw, grads.db, grads.d_initial_values};
}

}  // namespace
}  // namespace recgrela::ops

STABLE_TORCH_LIBRARY_IMPL(RECGRELA_CUDA_OPS, RECGRELA_CUDA_KEY, m) {
  m.impl("causal_conv1d", TORCH_BOX(&recgrela::ops::causal_conv1d));
  m.impl("causal_conv1d_backward", TORCH_BOX(&recgrela::ops::causal_conv1d_backward));
}
