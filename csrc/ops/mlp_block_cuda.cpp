// mlp_block on CUDA.
#include "mlp_block.h"

#include "cuda.h"
#include "kernels/mlp/params.h"

namespace recgrela::ops {
namespace {

// Parameters, and the operands that they point to.
struct Call {
  Tensor x;
  OptTensor z, norm_weight, norm_bias, w1, b1, w2, b2;
  cuda::MlpBlockParams params;

  explicit Call(const MlpBlock::Operands& a)
      : x(aligned_rows(a.x)),
        z(aligned_rows(a.z)),
        norm_weight(aligned(a.norm_weight)),
        norm_bias(aligned(a.norm_bias)),
        w1(aligned(a.w1)),
        b1(aligned(a.b1)),
        w2(aligned(a.w2)),
        b2(aligned(a.b2)) {
    cuda::MlpBlockParams& p = params;
    p.dtype = cuda_dtype(a.dtype);
    RECGRELA_CHECK(a.width() % p.kUnit == 0 && a.width() >= p.kMinBlockWidth && a.width() <= p.kMaxBlockWidth,
                   "the CUDA kernels of mlp_block take widths of ", p.kMinBlockWidth, " to ", p.kMaxBlockWidth,
                   " in steps of ", p.kUnit, ", not ", a.width());
    RECGRELA_CHECK(a.num_rows() <= p.kMaxRows, "the CUDA kernels of mlp_block take up to ", p.kMaxRows, " rows, not ",
                   a.num_rows(), "; split the batch");
    RECGRELA_CHECK(a.hidden_features() < (int64_t{1} << 20), "the hidden layer is too wide: ", a.hidden_features());
    p.activation = Mlp::activation_as<cuda::MlpActivation>(a.activation);
    p.num_rows = a.num_rows(), p.eps = static_cast<float>(a.eps);
    p.in = p.out = static_cast<int>(a.width()), p.hidden = static_cast<int>(a.hidden_features());
    p.drop_path = cuda_dropout(a.drop_path, a.seed, 0, 3, a.x, a.num_rows());
    p.dropout1 = cuda_dropout(a.dropout, a.seed, 1, 3, a.x, a.hidden_numel());
    p.dropout2 = cuda_dropout(a.dropout, a.seed, 2, 3, a.x, a.x.numel());
    p.sequence = data<int64_t>(a.sequence);
    p.x = cuda_rows(x), p.branch = cuda_rows(z);
    p.norm_weight = data<float>(norm_weight), p.norm_bias = data<float>(norm_bias);
    p.w1 = data<float>(w1), p.b1 = data<float>(b1), p.w2 = data<float>(w2), p.b2 = data<float>(b2);
  }
};

struct Cuda {
  static void forward(const MlpBlock::Operands& a, const MlpBlock::Outputs& out) {
    Call call(a);
    call.params.sum = cuda_rows(out.sum), call.params.y = cuda_rows(out.y);
    on_device(a.x, [&](cudaStream_t stream) { return cuda::mlp_block_forward(call.params, stream); });
  }

  static void backward(const MlpBlock::Operands& a, const MlpBlock::Gradients& grads) {
    Call call(a);
    const Tensor d_y = aligned_rows(grads.d_y);
    cuda::MlpBlockParams& p = call.params;
    p.d_y = cuda_rows(d_y), p.d_x = cuda_rows(grads.d_x), p.d_branch = cuda_rows(grads.d_z);
    p.d_norm_weight = mutable_data<float>(grads.d_norm_weight), p.d_norm_bias = mutable_data<float>(grads.d_norm_bias);
    p.d_w1 = mutable_data<float>(grads.d_w1), p.d_b1 = mutable_data<float>(grads.d_b1);
    p.d_w2 = mutable_data<float>(grads.d_w2), p.d_b2 = mutable_data<float>(grads.d_b2);
    run_kernel(a.x, p, cuda::mlp_block_backward_workspace, cuda::mlp_block_backward);
  }
};

}  // namespace
}  // namespace recgrela::ops

RECGRELA_CUDA_OP(MlpBlock)
