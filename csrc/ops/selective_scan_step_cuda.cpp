// selective_scan_step on CUDA.
#include "cuda.h"
#include "kernels/selective_scan_step/params.h"
#include "selective_scan_step.h"

namespace recgrela::ops {
namespace {

struct Cuda {
  static void forward(const SelectiveScanStep::Operands& o, const Tensor& y) {
    cuda::SelectiveScanStepParams p;
    p.dtype = cuda_dtype(o.u);
    p.batch = o.batch(), p.channels = o.channels(), p.delta_softplus = o.delta_softplus;
    p.num_states = static_cast<int>(o.num_states());
    p.u = cuda_rows(o.u), p.delta = cuda_rows(o.delta), p.z = cuda_rows(o.z), p.y = cuda_rows(y);
    p.B = cuda_rows(o.B), p.C = cuda_rows(o.C);
    p.A = data<float>(o.A), p.D = data<float>(o.D), p.delta_bias = data<float>(o.delta_bias);
    p.state = static_cast<float*>(o.state.mutable_data_ptr()), p.state_stride = o.state.stride(0);
    on_device(o.u, [&](cudaStream_t stream) { return cuda::selective_scan_step(p, stream); });
  }
};

}  // namespace
}  // namespace recgrela::ops

RECGRELA_CUDA_OP(SelectiveScanStep)
