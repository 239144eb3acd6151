// linear_cross_entropy on CUDA. The kernels keep no scores in memory, so that max_logits has no effect.
#include "cuda.h"
#include "kernels/linear_cross_entropy/params.h"
#include "linear_cross_entropy.h"

namespace recgrela::ops {
namespace {

struct Cuda {
  static void forward(const LinearCrossEntropy::Operands& a, const LinearCrossEntropy::Outputs& out) {
    using Params = cuda::LinearCrossEntropyParams;
    RECGRELA_CHECK(a.dim() >= Params::kMinWidth && a.dim() <= Params::kMaxWidth && a.dim() % 16 == 0,
                   "the CUDA kernels take widths that are multiples of 16 from ", Params::kMinWidth, " to ",
                   Params::kMaxWidth, ", not ", a.dim());
    const Tensor hidden = aligned_rows(a.hidden), weight = aligned_rows(a.weight);
    Params p;
    p.dtype = cuda_dtype(a.dtype), p.float32_hidden = a.dtype != hidden.scalar_type();
    p.num_rows = a.num_rows(), p.num_items = a.num_items(), p.dim = static_cast<int>(a.dim());
    p.label_smoothing = static_cast<float>(a.label_smoothing);
    p.hidden = cuda_rows(hidden), p.weight = cuda_rows(weight);
    p.bias = data<float>(a.bias), p.target = data<int64_t>(a.target);
    p.loss = static_cast<float*>(out.loss.mutable_data_ptr());
    p.d_hidden = mutable_data<char>(out.d_hidden);
    p.d_weight = mutable_data<float>(out.d_weight), p.d_bias = mutable_data<float>(out.d_bias);
    run_kernel(hidden, p, cuda::linear_cross_entropy_workspace, cuda::linear_cross_entropy_forward);
  }

  static void backward(const Tensor& d_loss, const LinearCrossEntropy::Gradients& from,
                       const LinearCrossEntropy::Gradients& to) {
    cuda::LinearCrossEntropyScaleParams p;
    p.dtype = cuda_dtype(from.d_hidden);
    p.d_loss = data<float>(d_loss);
    // Memory of views may not be aligned.
    const Tensor sources[] = {*aligned(from.d_hidden), *aligned(from.d_weight), *aligned(from.d_bias)};
    const Tensor results[] = {to.d_hidden, to.d_weight, to.d_bias};
    for (int i = 0; i < p.kNumGradients; ++i)
      p.gradients[i] = {sources[i].const_data_ptr(), results[i].mutable_data_ptr(), sources[i].numel()};
    on_device(d_loss, [&](cudaStream_t stream) { return cuda::linear_cross_entropy_backward(p, stream); });
  }
};

}  // namespace
}  // namespace recgrela::ops

RECGRELA_CUDA_OP(LinearCrossEntropy)
