// linear on CUDA.
#include "cuda.h"
#include "kernels/linear/params.h"
#include "linear.h"

namespace recgrela::ops {
namespace {

// Parameters, and the operands that they point to.
struct LinearCall {
  Tensor x;
  OptTensor weights[2];
  cuda::LinearParams params;

  explicit LinearCall(const Linear::Operands& a) : x(aligned_rows(a.x)) {
    constexpr int64_t kMaxWidth = cuda::LinearParams::kMaxWidth, kMaxRows = cuda::LinearParams::kMaxRows;
    const int64_t total = a.outputs() + a.outputs2();
    for (const int64_t width : {a.width(), a.outputs(), a.outputs2(), total})
      RECGRELA_CHECK(width % 16 == 0 && width <= kMaxWidth,
                     "the CUDA kernels of linear take widths, and a sum of outputs, that are multiples of 16 up to ",
                     kMaxWidth, ", not ", width);
    RECGRELA_CHECK(a.width() > 0 && a.outputs() > 0 && (!a.weight2 || a.outputs2() > 0), "widths must be above 0");
    RECGRELA_CHECK(a.num_rows() <= kMaxRows, "the CUDA kernels of linear take up to ", kMaxRows, " rows, not ",
                   a.num_rows(), "; split the batch");
    weights[0] = aligned(a.weight), weights[1] = aligned(a.weight2);
    params.dtype = cuda_dtype(a.x), params.num_rows = a.num_rows(), params.width = a.width();
    params.x = cuda_rows(x);
    params.layers[0].outputs = a.outputs(), params.layers[1].outputs = a.outputs2();
    params.layers[0].bias = data<float>(a.bias), params.layers[1].bias = data<float>(a.bias2);
    for (int i = 0; i < 2; ++i) params.layers[i].weight = data<float>(weights[i]);
  }
};

struct Cuda {
  static void forward(const Linear::Operands& a, const Linear::Outputs& out) {
    LinearCall call(a);
    call.params.layers[0].y = cuda_rows(out.y), call.params.layers[1].y = cuda_rows(out.y2);
    on_device(a.x, [&](cudaStream_t stream) { return cuda::linear_forward(call.params, stream); });
  }

  static void backward(const Linear::Operands& a, const Linear::Gradients& grads) {
    LinearCall call(a);
    const Tensor d_y = aligned_rows(grads.d_y);
    const OptTensor d_y2 = aligned_rows(grads.d_y2), d_passed = aligned_rows(grads.d_passed);
    auto& [first, second] = call.params.layers;
    first.d_y = cuda_rows(d_y), second.d_y = cuda_rows(d_y2);
    first.d_weight = mutable_data<float>(grads.d_weight), first.d_bias = mutable_data<float>(grads.d_bias);
    second.d_weight = mutable_data<float>(grads.d_weight2), second.d_bias = mutable_data<float>(grads.d_bias2);
    call.params.d_x = cuda_rows(grads.d_x), call.params.d_passed = cuda_rows(d_passed);
    run_kernel(a.x, call.params, cuda::linear_backward_workspace, cuda::linear_backward);
  }
};

}  // namespace
}  // namespace recgrela::ops

RECGRELA_CUDA_OP(Linear)
