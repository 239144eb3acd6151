// The operator dropout, which is its own gradient.
#include "dropout.h"

namespace recgrela::ops {
namespace {

Tensor dropout(const Tensor& x_, const Tensor& seed, double rate) {
  STD_TORCH_CHECK(x_.is_cpu(), "x must be on the CPU");
  return dispatch_float(x_.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    cpu::DropoutParams<T> p;
    p.dropout = dropout_of<T>(rate, seed, 0, 1, x_.numel());  // checks the size, before anything of it is copied
    const Tensor x = torch::stable::contiguous(x_), y = torch::stable::empty_like(x);
    p.numel = x.numel();
    p.x = static_cast<const T*>(x.const_data_ptr());
    p.y = static_cast<T*>(y.mutable_data_ptr());
    run<T>(cpu::kernels<T>().dropout, p, p.num_items(), p.numel, 0);
    return y;
  });
}

}  // namespace
}  // namespace recgrela::ops

STABLE_TORCH_LIBRARY_FRAGMENT(recgrela, m) { m.def("dropout(Tensor x, Tensor seed, float rate) -> Tensor"); }

STABLE_TORCH_LIBRARY_IMPL(recgrela, CPU, m) { m.impl("dropout", TORCH_BOX(&recgrela::ops::dropout)); }
