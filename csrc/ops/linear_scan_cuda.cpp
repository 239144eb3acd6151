// linear_scan on CUDA.
#include "cuda.h"
#include "kernels/linear_scan/params.h"
#include "linear_scan.h"

namespace recgrela::ops {
namespace {

cuda::LinearScanParams make_params(const LinearScan::Operands& o) {
  cuda::LinearScanParams p;
  p.complex = o.is_complex();
  RECGRELA_CHECK(!p.complex || o.x.scalar_type() == ScalarType::ComplexFloat,
                 "the CUDA kernels take complex64, not complex128");
  p.dtype = p.complex ? cuda::DType::kFloat32 : cuda_dtype(o.x);
  p.sequences = cuda_sequences(o.cu_seqlens, o.num_rows());
  p.channels = o.channels(), p.per_step = o.per_step();
  p.a = cuda_rows(o.a);
  p.initial_state = data<char>(o.initial_state);
  return p;
}

struct Cuda {
  static void forward(const LinearScan::Operands& o, const LinearScan::Outputs& out) {
    cuda::LinearScanParams p = make_params(o);
    p.x = cuda_rows(o.x), p.h = cuda_rows(out.h);
    p.final_state = mutable_data<char>(out.final_state);
    run_kernel(o.x, p, cuda::linear_scan_forward_workspace, cuda::linear_scan_forward);
  }

  static void backward(const LinearScan::Operands& o, const LinearScan::Gradients& grads) {
    cuda::LinearScanParams p = make_params(o);
    p.h = cuda_rows(o.x), p.d_h = cuda_rows(grads.d_h);
    p.d_x = cuda_rows(grads.d_x), p.d_a = cuda_rows(grads.d_a);
    p.d_final_state = data<char>(grads.d_final_state);
    p.d_initial_state = mutable_data<char>(grads.d_initial_state);
    run_kernel(o.x, p, cuda::linear_scan_backward_workspace, cuda::linear_scan_backward);
  }
};

}  // namespace
}  // namespace recgrela::ops

RECGRELA_CUDA_OP(LinearScan)
