// selective_scan on CUDA.
#include "cuda.h"
#include "kernels/selective_scan/params.h"
#include "selective_scan.h"

namespace recgrela::ops {
namespace {

static_assert(SelectiveScan::kMaxStates == cuda::SelectiveScanParams::kMaxStates);

SelectiveScan::Operands with_near_rows(SelectiveScan::Operands a) {
  a.u = near_rows(a.u), a.delta = near_rows(a.delta), a.z = near_rows(a.z);
  a.B = near_rows(a.B), a.C = near_rows(a.C);
  return a;
}

cuda::SelectiveScanParams make_params(const SelectiveScan::Operands& a) {
  cuda::SelectiveScanParams p;
  p.dtype = cuda_dtype(a.u);
  p.sequences = cuda_sequences(a.cu_seqlens, a.num_rows());
  p.channels = a.channels(), p.num_states = static_cast<int>(a.num_states()), p.delta_softplus = a.delta_softplus;
  p.u = cuda_rows(a.u), p.delta = cuda_rows(a.delta), p.z = cuda_rows(a.z);
  p.B = cuda_rows(a.B), p.C = cuda_rows(a.C);
  p.A = data<float>(a.A), p.D = data<float>(a.D), p.delta_bias = data<float>(a.delta_bias);
  p.initial_state = data<float>(a.initial_state);
  return p;
}

struct Cuda {
  static constexpr int64_t kCheckpointRows = cuda::SelectiveScanParams::kCheckpointRows;

  static void forward(const SelectiveScan::Operands& operands, const SelectiveScan::Outputs& out) {
    const SelectiveScan::Operands a = with_near_rows(operands);
    cuda::SelectiveScanParams p = make_params(a);
    p.y = cuda_rows(out.y);
    p.final_state = mutable_data<float>(out.final_state), p.checkpoints = mutable_data<float>(out.checkpoints);
    run_kernel(a.u, p, cuda::selective_scan_forward_workspace, cuda::selective_scan_forward);
  }

  static void backward(const SelectiveScan::Operands& operands, const SelectiveScan::Gradients& grads) {
    const SelectiveScan::Operands a = with_near_rows(operands);
    const Tensor d_y = near_rows(grads.d_y);
    cuda::SelectiveScanParams p = make_params(a);
    p.d_y = cuda_rows(d_y);
    p.d_u = cuda_rows(grads.d_u), p.d_delta = cuda_rows(grads.d_delta), p.d_z = cuda_rows(grads.d_z);
    p.d_B = cuda_rows(grads.d_B), p.d_C = cuda_rows(grads.d_C);
    p.d_A = mutable_data<float>(grads.d_A), p.d_D = mutable_data<float>(grads.d_D);
    p.d_delta_bias = mutable_data<float>(grads.d_delta_bias);
    p.d_final_state = data<float>(grads.d_final_state);
    p.d_initial_state = mutable_data<float>(grads.d_initial_state);
    p.checkpoints = const_cast<float*>(data<float>(grads.checkpoints));
    run_kernel(a.u, p, cuda::selective_scan_backward_workspace, cuda::selective_scan_backward);
  }
};

}  // namespace
}  // namespace recgrela::ops

RECGRELA_CUDA_OP(SelectiveScan)
