// The operator dropout. It is linear: its gradient is the same operator.
#include "cpu/dropout.h"

#include "dropout.h"

namespace recgrela::ops {
namespace {

Tensor dropout(const Tensor& x_, const Tensor& seed, double rate) {
  return dispatch_float(x_.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    cpu::DropoutParams<T> p;
    p.dropout = make_dropout<T>(rate, seed, 0, 1, x_, x_.numel());  // checks the size before x is copied
    const Tensor x = contiguous(x_), y = make_like(x);
    p.numel = x.numel();
    p.x = static_cast<const T*>(x.const_data_ptr());
    p.y = static_cast<T*>(y.mutable_data_ptr());
    run_forward(cpu::dropout_kernels<T>(), p, p.num_items(), p.numel);
    return y;
  });
}

}  // namespace
}  // namespace recgrela::ops

STABLE_TORCH_LIBRARY_FRAGMENT(recgrela, m) { m.def(recgrela::ops::kDropoutSchema); }

STABLE_TORCH_LIBRARY_IMPL(recgrela, CPU, m) {
  using Call = recgrela::ops::Named<recgrela::ops::kDropout, false, &recgrela::ops::dropout>;
  m.impl(recgrela::ops::kDropout, TORCH_BOX(&Call::call));
}
