// dropout on CUDA.
#include "cuda.h"
#include "kernels/dropout/params.h"

namespace recgrela::ops {
namespace {

Tensor dropout(const Tensor& x_, const Tensor& seed, double rate) {
  cuda::DropoutParams p;
  p.dtype = cuda_dtype(x_);
  p.dropout = cuda_dropout(rate, seed, 0, 1, x_, x_.numel());  // checks the size before x is copied
  const Tensor x = *aligned(contiguous(x_)), y = make_like(x);
  p.numel = x.numel();
  p.x = x.const_data_ptr(), p.y = y.mutable_data_ptr();
  on_device(x, [&](cudaStream_t stream) { return cuda::dropout(p, stream); });
  return y;
}

}  // namespace
}  // namespace recgrela::ops

STABLE_TORCH_LIBRARY_IMPL(RECGRELA_CUDA_OPS, RECGRELA_CUDA_KEY, m) {
  using Call = recgrela::ops::Named<recgrela::ops::kDropout, false, &recgrela::ops::dropout>;
  m.impl(recgrela::ops::kDropout, TORCH_BOX(&Call::call));
}
#ifdef RECGRELA_SIMT_HOST
STABLE_TORCH_LIBRARY_FRAGMENT(RECGRELA_CUDA_OPS, m) { m.def(recgrela::ops::kDropoutSchema); }
#endif
