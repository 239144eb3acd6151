// The operator selective_scan on CUDA.
#include "cuda.h"
#include "selective_scan.h"
#include "kernels/selective_scan/params.h"

namespace recgrela::ops {
namespace {

struct CudaSelectiveArgs {
  SelectiveScanArgs a;
  cuda::SelectiveScanParams p;

  explicit CudaSelectiveArgs(SelectiveScanArgs args) : a(std::move(args)) {
    static_assert(SelectiveScanArgs::kMostStates == cuda::SelectiveScanParams::kMaxStates &&
                  SelectiveScanArgs::kCheckpointRows == cuda::SelectiveScanParams::kCheckpointRows);
    p.dtype = cuda_dtype(a.u);
    p.sequences = cuda_sequences(a.cu_seqlens, a.num_rows());
    p.channels = a.channels(), p.num_states = static_cast<int>(a.states()), p.delta_softplus = a.delta_softplus;
    p.u = cuda_rows(a.u), p.delta = cuda_rows(a.delta), p.B = cuda_rows(a.B), p.C = cuda_rows(a.C);
    if (a.z) p.z = cuda_rows(*a.z);
    p.A = data<float>(a.A), p.D = data<float>(a.D), p.delta_bias = data<float>(a.delta_bias);
    p.initial_state = data<float>(a.initial_state);
  }
};

std::tuple<Tensor, Tensor, Tensor> selective_scan(const Tensor& u, const Tensor& delta, const Tensor& A,
                                                  const Tensor& B, const Tensor& C, const OptTensor& D,
                                                  const OptTensor& z, const OptTensor& delta_bias,
                                                  const Tensor& cu_seqlens, const OptTensor& initial_state,
                                                  bool delta_softplus, bool return_state, bool keep_states) {
  CudaSelectiveArgs args(
      SelectiveScanArgs(u, delta, A, B, C, D, z, delta_bias, cu_seqlens, initial_state, delta_softplus));
  const SelectiveScanOutputs out(args.a, return_state, keep_states);
  cuda::SelectiveScanParams& p = args.p;
  p.y = cuda_rows(out.y);
  if (return_state) p.final_state = mutable_data<float>(out.state);
  if (keep_states) p.checkpoints = mutable_data<float>(out.kept);
  on_device(args.a.u, [&](cudaStream_t stream) {
    const Tensor workspace = make_workspace(args.a.u, cuda::selective_scan_forward_workspace(p));
    p.workspace = workspace.mutable_data_ptr();
    return cuda::selective_scan_forward(p, stream);
  });
  return {out.y, out.state, out.kept};
}

SelectiveScanGradients::Tuple selective_scan_backward(const Tensor& dy, const OptTensor& d_state, const Tensor& u,
                                                      const Tensor& delta, const Tensor& A, const Tensor& B,
                                                      const Tensor& C, const OptTensor& D, const OptTensor& z,
                                                      const OptTensor& delta_bias, const Tensor& cu_seqlens,
                                                      const OptTensor& initial_state, const Tensor& kept,
                                                      bool delta_softplus) {
  CudaSelectiveArgs args(
      SelectiveScanArgs(u, delta, A, B, C, D, z, delta_bias, cu_seqlens, initial_state, delta_softplus));
  const SelectiveScanGradients grads(args.a, dy, d_state, kept);
  cuda::SelectiveScanParams& p = args.p;
  p.d_y = cuda_rows(grads.dy), p.d_u = cuda_rows(grads.du), p.d_delta = cuda_rows(grads.ddelta);
  p.d_B = cuda_rows(grads.dB), p.d_C = cuda_rows(grads.dC);
  if (args.a.z) p.d_z = cuda_rows(grads.dz);
  p.d_A = mutable_data<float>(grads.dA);
  if (args.a.D) p.d_D = mutable_data<float>(grads.dD);
  if (args.a.delta_bias) p.d_delta_bias = mutable_data<float>(grads.d_delta_bias);
  p.d_final_state = data<float>(grads.d_state);
  if (args.a.initial_state) p.d_initial_state = mutable_data<float>(grads.d_initial_state);
  p.checkpoints = static_cast<float*>(const_cast<void*>(grads.kept.const_data_ptr()));
  on_device(args.a.u, [&](cudaStream_t stream) {
    const Tensor workspace = make_workspace(args.a.u, cuda::selective_scan_backward_workspace(p));
    p.workspace = workspace.mutable_data_ptr();
    return cuda::selective_scan_backward(p, stream);
  });
  return grads.tuple();
}

}  // namespace
}  // namespace recgrela::ops

STABLE_TORCH_LIBRARY_IMPL(RECGRELA_CUDA_OPS, RECGRELA_CUDA_KEY, m) {
  m.impl("selective_scan", TORCH_BOX(&recgrela::ops::selective_scan));
  m.impl("selective_scan_backward", TORCH_BOX(&recgrela::ops::selective_scan_backward));
}
