// causal_conv1d on CUDA.
#include "causal_conv1d.h"
#include "cuda.h"
#include "kernels/causal_conv1d/params.h"

namespace recgrela::ops {
namespace {

cuda::CausalConv1dParams make_params(const CausalConv1d::Operands& a) {
  cuda::CausalConv1dParams p;
  p.dtype = cuda_dtype(a.x);
  RECGRELA_CHECK(a.kernel_size() <= 4, "the CUDA kernels take kernel sizes up to 4, not ", a.kernel_size());
  p.sequences = cuda_sequences(a.cu_seqlens, a.num_rows());
  p.channels = a.channels(), p.kernel_size = static_cast<int>(a.kernel_size()), p.silu = a.silu;
  p.x = cuda_rows(a.x);
  p.weight = data<float>(a.weight), p.bias = data<float>(a.bias);
  p.initial_history = data<char>(a.initial_history);
  return p;
}

struct Cuda {
  static void forward(const CausalConv1d::Operands& a, const CausalConv1d::Outputs& out) {
    cuda::CausalConv1dParams p = make_params(a);
    p.y = cuda_rows(out.y);
    p.final_history = mutable_data<char>(out.final_history);
    on_device(a.x, [&](cudaStream_t stream) { return cuda::causal_conv1d_forward(p, stream); });
  }

  static void backward(const CausalConv1d::Operands& a, const CausalConv1d::Gradients& grads) {
    cuda::CausalConv1dParams p = make_params(a);
    p.d_y = cuda_rows(grads.d_y), p.d_x = cuda_rows(grads.d_x);
    p.d_weight = mutable_data<float>(grads.d_weight), p.d_bias = mutable_data<float>(grads.d_bias);
    p.d_final_history = data<char>(grads.d_final_history);
    p.d_initial_history = mutable_data<char>(grads.d_initial_history);
    run_kernel(a.x, p, cuda::causal_conv1d_backward_workspace, cuda::causal_conv1d_backward);
  }
};

}  // namespace
}  // namespace recgrela::ops

RECGRELA_CUDA_OP(CausalConv1d)
