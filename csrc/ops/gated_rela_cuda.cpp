// gated_rela on CUDA.
#include "gated_rela.h"

#include "cuda.h"
#include "kernels/gated_rela/params.h"

namespace recgrela::ops {
namespace {

// Returns the operands, copied where the kernels need aligned rows. They must outlive the kernel parameters.
GatedRela::Operands align(GatedRela::Operands a) {
  a.q = aligned_rows(a.q), a.k = aligned_rows(a.k), a.v = aligned_rows(a.v), a.g = aligned_rows(a.g);
  a.rotary = aligned(a.rotary), a.initial_history = aligned(a.initial_history);
  return a;
}

// Returns k, given a matrix whose rows contain q and k side by side.
cuda::RowMatrix second_half(const cuda::RowMatrix& qk, const GatedRela::Operands& a) {
  return {static_cast<char*>(qk.data) + a.width() * a.v.element_size(), qk.stride};
}

cuda::GatedRelaParams make_params(const GatedRela::Operands& a) {
  const int64_t d = a.head_dim();
  cuda::GatedRelaParams p;
  p.dtype = cuda_dtype(a.v);
  RECGRELA_CHECK(d == 8 || d == 16 || d == 32 || d == 64 || d == 128,
                 "the CUDA kernels take heads of 8, 16, 32, 64 or 128 channels, not ", d);
  RECGRELA_CHECK(a.kernel_size() <= 4, "the CUDA kernels take kernel sizes up to 4, not ", a.kernel_size());
  p.sequences = cuda_sequences(a.cu_seqlens, a.num_rows());
  p.num_heads = static_cast<int>(a.num_heads), p.head_dim = static_cast<int>(d);
  p.kernel_size = static_cast<int>(a.kernel_size());
  p.causal = a.causal, p.eps = static_cast<float>(a.eps);
  p.q = cuda_rows(a.q), p.v = cuda_rows(a.v), p.g = cuda_rows(a.g);
  p.k = a.k ? cuda_rows(a.k) : second_half(p.q, a);
  p.rotary = data<float>(a.rotary);
  if (a.rotary) p.rotary_positions = p.sequences.max_length = a.rotary->size(0);
  p.conv_weight = data<float>(a.conv_weight), p.conv_bias = data<float>(a.conv_bias);
  p.initial_kv_state = data<float>(a.initial_kv_state), p.initial_history = data<char>(a.initial_history);
  p.initial_position = data<int64_t>(a.initial_position);
  return p;
}

struct Cuda {
  static void forward(const GatedRela::Operands& operands, const GatedRela::Outputs& out) {
    const GatedRela::Operands a = align(operands);
    cuda::GatedRelaParams p = make_params(a);
    p.y = cuda_rows(out.y);
    p.final_kv_state = mutable_data<float>(out.final_kv_state), p.final_history = mutable_data<char>(out.final_history);
    p.final_position = mutable_data<int64_t>(out.final_position);
    run_kernel(a.v, p, cuda::gated_rela_forward_workspace, cuda::gated_rela_forward);
  }

  static void backward(const GatedRela::Operands& operands, const GatedRela::Gradients& grads) {
    const GatedRela::Operands a = align(operands);
    const Tensor d_y = aligned_rows(grads.d_y);
    const OptTensor d_final_history = aligned(grads.d_final_history);
    cuda::GatedRelaParams p = make_params(a);
    p.d_y = cuda_rows(d_y);
    p.d_q = cuda_rows(grads.d_q), p.d_v = cuda_rows(grads.d_v), p.d_g = cuda_rows(grads.d_g);
    p.d_k = a.k ? cuda_rows(grads.d_k) : second_half(p.d_q, a);
    p.d_conv_weight = mutable_data<float>(grads.d_conv_weight);
    p.d_conv_bias = mutable_data<float>(grads.d_conv_bias);
    p.saved_kv_state = data<float>(grads.final_kv_state);
    p.d_final_kv_state = data<float>(grads.d_final_kv_state), p.d_final_history = data<char>(d_final_history);
    p.d_initial_kv_state = mutable_data<float>(grads.d_initial_kv_state);
    p.d_initial_history = mutable_data<char>(grads.d_initial_history);
    run_kernel(a.v, p, cuda::gated_rela_backward_workspace, cuda::gated_rela_backward);
  }
};

}  // namespace
}  // namespace recgrela::ops

RECGRELA_CUDA_OP(GatedRela)
