// The operator linear_scan on CUDA.
#include "cuda.h"
#include "linear_scan.h"
#include "kernels/linear_scan/params.h"

namespace recgrela::ops {
namespace {

struct CudaScanArgs {
  LinearScanArgs a;
  cuda::LinearScanParams p;

  explicit CudaScanArgs(LinearScanArgs args) : a(std::move(args)) {
    p.complex = is_complex(a.x);
    STD_TORCH_CHECK(!p.complex || a.x.scalar_type() == ScalarType::ComplexFloat,
                    "the CUDA kernels take complex64, not complex128");
    p.dtype = p.complex ? cuda::DType::kFloat32 : cuda_dtype(a.x);
    p.sequences = cuda_sequences(a.cu_seqlens, a.x.size(0));
    p.channels = a.channels(), p.per_step = a.per_step();
    p.a = p.per_step ? cuda_rows(a.a) : row(a.a);
    p.initial_state = data<char>(a.initial_state);
  }

  // Of a vector.
  static cuda::RowMatrix row(const Tensor& x) { return {const_cast<void*>(x.const_data_ptr()), x.size(0)}; }
};

std::tuple<Tensor, Tensor> linear_scan(const Tensor& x, const Tensor& a, const Tensor& cu_seqlens,
                                       const OptTensor& initial_state, bool return_state) {
  CudaScanArgs args(LinearScanArgs(x, a, cu_seqlens, initial_state));
  const LinearScanOutputs out(args.a, return_state);
  cuda::LinearScanParams& p = args.p;
  p.x = cuda_rows(args.a.x), p.h = cuda_rows(out.h);
  if (return_state) p.final_state = out.state.mutable_data_ptr();
  on_device(args.a.x, [&](cudaStream_t stream) {
    const Tensor workspace = make_workspace(args.a.x, cuda::linear_scan_forward_workspace(p));
    p.workspace = workspace.mutable_data_ptr();
    return cuda::linear_scan_forward(p, stream);
  });
  return {out.h, out.state};
}

std::tuple<Tensor, Tensor, Tensor> linear_scan_backward(const Tensor& dh, const OptTensor& d_state, const Tensor& a,
                                                        const Tensor& cu_seqlens, const OptTensor& initial_state,
                                                        const Tensor& h) {
  CudaScanArgs args(LinearScanArgs(h, a, cu_seqlens, initial_state));
  const LinearScanGradients grads(args.a, dh, d_state);
  cuda::LinearScanParams& p = args.p;
  p.h = cuda_rows(args.a.x), p.d_h = cuda_rows(grads.dh), p.d_x = cuda_rows(grads.dx);
  p.d_a = p.per_step ? cuda_rows(grads.da) : CudaScanArgs::row(grads.da);
  p.d_final_state = data<char>(grads.d_state);
  if (args.a.initial_state) p.d_initial_state = grads.d_initial_state.mutable_data_ptr();
  on_device(args.a.x, [&](cudaStream_t stream) {
    const Tensor workspace = make_workspace(args.a.x, cuda::linear_scan_backward_workspace(p));
    p.workspace = workspace.mutable_data_ptr();
    return cuda::linear_scan_backward(p, stream);
  });
  return {grads.dx, grads.da, grads.d_initial_state};
}

}  // namespace
}  // namespace recgrela::ops

STABLE_TORCH_LIBRARY_IMPL(RECGRELA_CUDA_OPS, RECGRELA_CUDA_KEY, m) {
  m.impl("linear_scan", TORCH_BOX(&recgrela::ops::linear_scan));
  m.impl("linear_scan_backward", TORCH_BOX(&recgrela::ops::linear_scan_backward));
}
