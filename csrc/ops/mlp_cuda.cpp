// mlp on CUDA.
#include "cuda.h"
#include "kernels/mlp/params.h"
#include "mlp.h"

namespace recgrela::ops {
namespace {

// The operands of the kernels: rows aligned to 16 bytes, dense weights.
struct Aligned {
  Tensor x, w1, b1, w2, b2;

  explicit Aligned(const Mlp::Operands& a)
      : x(aligned_rows(a.x)), w1(dense(a.w1)), b1(dense(a.b1)), w2(dense(a.w2)), b2(dense(a.b2)) {}
  static Tensor dense(const Tensor& w) { return *aligned(contiguous(w)); }
};

cuda::MlpParams make_params(const Mlp::Operands& a, const Aligned& aligned) {
  cuda::MlpParams p;
  p.dtype = cuda_dtype(a.x);
  const int64_t max = p.dtype == cuda::DType::kFloat32 ? p.kMaxFloat32Width : p.kMaxWidth;
  for (const int64_t width : {a.in_features(), a.out_features()})
    RECGRELA_CHECK(width % p.kUnit == 0 && width <= max, "the CUDA kernels take widths of x and y in multiples of ",
                   p.kUnit, " up to ", max, ", not ", width);
  RECGRELA_CHECK(a.num_rows() <= p.kMaxRows, "the CUDA kernels of mlp take up to ", p.kMaxRows, " rows, not ",
                 a.num_rows(), "; split the batch");
  RECGRELA_CHECK(a.hidden_features() < (int64_t{1} << 20), "the hidden layer is too wide: ", a.hidden_features());
  p.activation = Mlp::activation_as<cuda::MlpActivation>(a.activation);
  p.num_rows = a.num_rows();
  p.in = static_cast<int>(a.in_features()), p.hidden = static_cast<int>(a.hidden_features());
  p.out = static_cast<int>(a.out_features());
  p.dropout1 = cuda_dropout(a.rate, a.seed, 0, 2, a.x, a.hidden_numel());
  p.dropout2 = cuda_dropout(a.rate, a.seed, 1, 2, a.x, a.out_numel());
  p.x = cuda_rows(aligned.x);
  p.w1 = data<float>(aligned.w1), p.b1 = data<float>(aligned.b1);
  p.w2 = data<float>(aligned.w2), p.b2 = data<float>(aligned.b2);
  return p;
}

struct Cuda {
  static void forward(const Mlp::Operands& a, const Mlp::Outputs& out) {
    const Aligned aligned(a);
    cuda::MlpParams p = make_params(a, aligned);
    p.y = cuda_rows(out.y);
    on_device(a.x, [&](cudaStream_t stream) { return cuda::mlp_forward(p, stream); });
  }

  static void backward(const Mlp::Operands& a, const Mlp::Gradients& grads) {
    const Aligned aligned(a);
    const Tensor d_y = aligned_rows(grads.d_y);
    cuda::MlpParams p = make_params(a, aligned);
    p.d_y = cuda_rows(d_y), p.d_x = cuda_rows(grads.d_x);
    p.d_w1 = mutable_data<float>(grads.d_w1), p.d_b1 = mutable_data<float>(grads.d_b1);
    p.d_w2 = mutable_data<float>(grads.d_w2), p.d_b2 = mutable_data<float>(grads.d_b2);
    run_kernel(a.x, p, cuda::mlp_backward_workspace, cuda::mlp_backward);
  }
};

}  // namespace
}  // namespace recgrela::ops

RECGRELA_CUDA_OP(Mlp)
