// The operator gated_rela on CUDA.
#include "cuda.h"
#include "gated_rela.h"
#include "kernels/gated_rela/params.h"

namespace recgrela::ops {
namespace {

// With rows that the kernels can take; keeps the tensors that the pointers point into.
struct CudaRelaArgs {
  RelaArgs a;
  cuda::GatedRelaParams p;

  explicit CudaRelaArgs(RelaArgs args) : a(std::move(args)) {
    const int64_t d = a.head_dim();
    p.dtype = cuda_dtype(a.v);
    STD_TORCH_CHECK(d == 8 || d == 16 || d == 32 || d == 64 || d == 128,
                    "the CUDA kernels take heads of 8, 16, 32, 64 or 128 channels, not ", d);
    STD_TORCH_CHECK(a.conv_width() <= 4, "the CUDA kernels take convolutions of up to 4 taps, not ", a.conv_width());
    a.q = aligned_rows(a.q), a.v = aligned_rows(a.v), a.k = aligned_rows(a.k), a.g = aligned_rows(a.g);
    a.rotary = aligned(a.rotary), a.values = aligned(a.values);
    p.sequences = cuda_sequences(a.cu_seqlens, a.v.size(0));
    p.num_heads = static_cast<int>(a.num_heads), p.head_dim = static_cast<int>(d);
    p.kernel_size = static_cast<int>(a.conv_width());
    p.causal = a.causal, p.eps = static_cast<float>(a.eps);
    p.q = cuda_rows(a.q), p.v = cuda_rows(a.v);
    p.k = a.k ? cuda_rows(*a.k) : second_half(p.q);
    if (a.g) p.g = cuda_rows(*a.g);
    p.rotary = data<float>(a.rotary);
    if (a.rotary) p.rotary_positions = p.sequences.max_length = a.rotary->size(0);
    p.conv_weight = data<char>(a.conv_weight), p.conv_bias = data<char>(a.conv_bias);
    p.initial_kv_state = data<float>(a.sums), p.initial_history = data<char>(a.values);
    p.initial_position = data<int64_t>(a.count);
  }

  // k, where the rows hold q and k side by side
  cuda::RowMatrix second_half(const cuda::RowMatrix& qk) const {
    return {static_cast<char*>(qk.data) + a.width() * a.v.element_size(), qk.stride};
  }

  static OptTensor aligned(const OptTensor& x) {
    return x && reinterpret_cast<uintptr_t>(x->const_data_ptr()) % 16 ? OptTensor(torch::stable::clone(*x)) : x;
  }
};

RelaResult gated_rela(const Tensor& q, const OptTensor& k, const Tensor& v, const OptTensor& g,
                      const Tensor& cu_seqlens, const OptTensor& rotary, const OptTensor& conv_weight,
                      const OptTensor& conv_bias, const OptTensor& sums, const OptTensor& values,
                      const OptTensor& count, int64_t num_heads, bool causal, double eps, bool return_state) {
  CudaRelaArgs args(
      RelaArgs(q, k, v, g, cu_seqlens, rotary, conv_weight, conv_bias, sums, values, count, num_heads, causal, eps));
  const RelaOutputs out(args.a, return_state);
  cuda::GatedRelaParams& p = args.p;
  p.y = cuda_rows(out.y);
  if (return_state) {
    p.final_kv_state = mutable_data<float>(out.sums), p.final_history = mutable_data<char>(out.values);
    p.final_position = mutable_data<int64_t>(out.count);
  }
  on_device(args.a.v, [&](cudaStream_t stream) {
    const Tensor workspace = make_workspace(args.a.v, cuda::gated_rela_forward_workspace(p));
    p.workspace = workspace.mutable_data_ptr();
    return cuda::gated_rela_forward(p, stream);
  });
  return {out.y, out.sums, out.values, out.count};
}

RelaGradientResult gated_rela_backward(const Tensor& dy, const OptTensor& d_sums, const OptTensor& d_values,
                                       const Tensor& q, const OptTensor& k, const Tensor& v, const OptTensor& g,
                                       const Tensor& cu_seqlens, const OptTensor& rotary, const OptTensor& conv_weight,
                                       const OptTensor& conv_bias, const OptTensor& sums, const OptTensor& values,
                                       const OptTensor& count, int64_t num_heads, bool causal, double eps) {
  CudaRelaArgs args(
      RelaArgs(q, k, v, g, cu_seqlens, rotary, conv_weight, conv_bias, sums, values, count, num_heads, causal, eps));
  RelaGradients grads(args.a, dy, d_sums, d_values);
  grads.dy = aligned_rows(grads.dy), grads.d_values = CudaRelaArgs::aligned(grads.d_values);
  cuda::GatedRelaParams& p = args.p;
  p.d_y = cuda_rows(grads.dy);
  p.d_q = cuda_rows(grads.dq), p.d_v = cuda_rows(grads.dv);
  p.d_k = args.a.k ? cuda_rows(grads.dk) : args.second_half(p.d_q);
  if (args.a.g) p.d_g = cuda_rows(grads.dg);
  p.d_final_kv_state = data<float>(grads.d_sums), p.d_final_history = data<char>(grads.d_values);
  if (args.a.conv_weight) p.d_conv_weight = mutable_data<char>(grads.dw), p.d_conv_bias = mutable_data<char>(grads.db);
  if (args.a.sums) {
    p.d_initial_kv_state = mutable_data<float>(grads.d_initial_sums);
    p.d_initial_history = mutable_data<char>(grads.d_initial_values);
  }
  on_device(args.a.v, [&](cudaStream_t stream) {
    const Tensor workspace = make_workspace(args.a.v, cuda::gated_rela_backward_workspace(p));
    p.workspace = workspace.mutable_data_ptr();
    return cuda::gated_rela_backward(p, stream);
  });
  return grads.result();
}

}  // namespace
}  // namespace recgrela::ops

STABLE_TORCH_LIBRARY_IMPL(RECGRELA_CUDA_OPS, RECGRELA_CUDA_KEY, m) {
  m.impl("gated_rela", TORCH_BOX(&recgrela::ops::gated_rela));
  m.impl("gated_rela_backward", TORCH_BOX(&recgrela::ops::gated_rela_backward));
}
