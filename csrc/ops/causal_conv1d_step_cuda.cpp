// causal_conv1d_step on CUDA.
#include "causal_conv1d_step.h"
#include "cuda.h"
#include "kernels/causal_conv1d_step/params.h"

namespace recgrela::ops {
namespace {

struct Cuda {
  static void forward(const CausalConv1dStep::Operands& o, const Tensor& y) {
    cuda::CausalConv1dStepParams p;
    p.dtype = cuda_dtype(o.x);
    p.batch = o.batch(), p.channels = o.channels(), p.silu = o.silu;
    p.kernel_size = static_cast<int>(o.kernel_size());
    p.x = cuda_rows(o.x), p.y = cuda_rows(y);
    p.weight = data<float>(o.weight), p.bias = data<float>(o.bias);
    p.history = state_rows(o.history);
    on_device(o.x, [&](cudaStream_t stream) { return cuda::causal_conv1d_step(p, stream); });
  }
};

}  // namespace
}  // namespace recgrela::ops

RECGRELA_CUDA_OP(CausalConv1dStep)
