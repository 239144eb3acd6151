// gated_rela_last on CUDA.
#include "gated_rela_last.h"

#include "cuda.h"
#include "kernels/gated_rela_last/params.h"

namespace recgrela::ops {
namespace {

// Returns the operands, copied where the kernels need aligned rows. They must outlive the kernel parameters.
GatedRelaLast::Operands align(GatedRelaLast::Operands a) {
  a.q = aligned_rows(a.q), a.k = aligned_rows(a.k), a.v = aligned_rows(a.v), a.g = aligned_rows(a.g);
  a.rotary = aligned(a.rotary);
  return a;
}

cuda::GatedRelaLastParams make_params(const GatedRelaLast::Operands& a) {
  const int64_t d = a.head_dim();
  cuda::GatedRelaLastParams p;
  p.dtype = cuda_dtype(a.v);
  RECGRELA_CHECK(d == 8 || d == 16 || d == 32 || d == 64 || d == 128,
                 "the CUDA kernels take heads of 8, 16, 32, 64 or 128 channels, not ", d);
  p.sequences = cuda_sequences(a.cu_seqlens, a.num_rows());
  p.num_heads = static_cast<int>(a.num_heads), p.head_dim = static_cast<int>(d);
  p.kernel_size = static_cast<int>(a.kernel_size()), p.eps = static_cast<float>(a.eps);
  p.q = cuda_rows(a.q), p.k = cuda_rows(a.k), p.v = cuda_rows(a.v), p.g = cuda_rows(a.g);
  p.wanted = data<int64_t>(a.rows);
  p.rotary = data<float>(a.rotary);
  if (a.rotary) p.rotary_positions = p.sequences.max_length = a.rotary->size(0);
  p.conv_weight = data<float>(a.conv_weight), p.conv_bias = data<float>(a.conv_bias);
  return p;
}

struct Cuda {
  static void forward(const GatedRelaLast::Operands& operands, const GatedRelaLast::Outputs& out) {
    const GatedRelaLast::Operands a = align(operands);
    cuda::GatedRelaLastParams p = make_params(a);
    p.y = cuda_rows(out.y), p.sums = mutable_data<float>(out.sums);
    run_kernel(a.v, p, cuda::gated_rela_last_forward_workspace, cuda::gated_rela_last_forward);
  }

  static void backward(const GatedRelaLast::Operands& operands, const GatedRelaLast::Gradients& grads) {
    const GatedRelaLast::Operands a = align(operands);
    const Tensor d_y = aligned_rows(grads.d_y);
    const OptTensor sums = aligned(grads.sums);
    cuda::GatedRelaLastParams p = make_params(a);
    p.sums = const_cast<float*>(data<float>(sums));
    p.d_y = cuda_rows(d_y), p.d_q = cuda_rows(grads.d_q), p.d_g = cuda_rows(grads.d_g);
    p.d_k = cuda_rows(grads.d_k), p.d_v = cuda_rows(grads.d_v);
    p.d_conv_weight = mutable_data<float>(grads.d_conv_weight);
    p.d_conv_bias = mutable_data<float>(grads.d_conv_bias);
    run_kernel(a.v, p, cuda::gated_rela_last_backward_workspace, cuda::gated_rela_last_backward);
  }
};

}  // namespace
}  // namespace recgrela::ops

RECGRELA_CUDA_OP(GatedRelaLast)
