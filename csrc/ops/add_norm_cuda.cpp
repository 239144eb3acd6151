// add_norm on CUDA.
#include "add_norm.h"
#include "cuda.h"
#include "kernels/add_norm/params.h"

namespace recgrela::ops {
namespace {

// The operands whose rows and parameters are aligned as the kernels need them.
struct Aligned {
  Tensor x;
  OptTensor z, weight, bias;

  explicit Aligned(const AddNorm::Operands& a)
      : x(aligned_rows(a.x)), z(aligned_rows(a.z)), weight(aligned(a.weight)), bias(aligned(a.bias)) {}
};

cuda::AddNormParams make_params(const AddNorm::Operands& a, const Aligned& aligned) {
  cuda::AddNormParams p;
  p.dtype = cuda_dtype(a.dtype);
  RECGRELA_CHECK(a.width() >= p.kMinWidth && a.width() <= p.kMaxWidth && a.width() % p.kWidthStep == 0,
                 "the CUDA kernels take widths of 32 to 256 in steps of 16, not ", a.width());
  RECGRELA_CHECK(a.num_rows() <= p.kMaxRows, "the CUDA kernels take up to 2^30 rows, not ", a.num_rows());
  p.num_rows = a.num_rows(), p.width = static_cast<int>(a.width());
  p.post_norm = a.post_norm, p.eps = static_cast<float>(a.eps);
  p.x = cuda_rows(aligned.x), p.z = cuda_rows(aligned.z);
  p.weight = data<float>(aligned.weight), p.bias = data<float>(aligned.bias);
  p.sequence = data<int64_t>(a.sequence);
  p.dropout = cuda_dropout(a.dropout, a.seed, 0, 2, a.x, a.x.numel());
  p.drop_path = cuda_dropout(a.drop_path, a.seed, 1, 2, a.x, a.num_rows());
  return p;
}

struct Cuda {
  static void forward(const AddNorm::Operands& a, const AddNorm::Outputs& out) {
    const Aligned aligned(a);
    cuda::AddNormParams p = make_params(a, aligned);
    p.residual = cuda_rows(out.residual), p.normed = cuda_rows(out.normed);
    on_device(a.x, [&](cudaStream_t stream) { return cuda::add_norm_forward(p, stream); });
  }

  static void backward(const AddNorm::Operands& a, const AddNorm::Gradients& grads) {
    const Aligned aligned(a);
    const OptTensor d_residual = aligned_rows(grads.d_residual), d_normed = aligned_rows(grads.d_normed);
    cuda::AddNormParams p = make_params(a, aligned);
    p.d_residual = cuda_rows(d_residual), p.d_normed = cuda_rows(d_normed);
    p.d_x = cuda_rows(grads.d_x), p.d_z = cuda_rows(grads.d_z);
    p.d_weight = mutable_data<float>(grads.d_weight), p.d_bias = mutable_data<float>(grads.d_bias);
    run_kernel(a.x, p, cuda::add_norm_backward_workspace, cuda::add_norm_backward);
  }
};

}  // namespace
}  // namespace recgrela::ops

RECGRELA_CUDA_OP(AddNorm)
