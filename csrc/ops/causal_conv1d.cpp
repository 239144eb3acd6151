// The operator causal_conv1d.
#include "common.h"

namespace recgrela::ops {
namespace {

struct ConvArgs {
  Tensor x, weight;
  OptTensor bias;
  Sequences sequences;

  ConvArgs(const Tensor& x_, const Tensor& weight_, const OptTensor& bias_, const Tensor& cu_seqlens)
      : x(with_contiguous_rows(x_)),
        weight(torch::stable::contiguous(weight_)),
        bias(contiguous(bias_)),
        sequences(read_sequences(cu_seqlens, x_.size(0))) {
    check_rows(x, x, "x");
    STD_TORCH_CHECK(weight.is_cpu() && weight.scalar_type() == x.scalar_type() && weight.dim() == 2 &&
                        weight.size(0) == x.size(1) && weight.size(1) > 0,
                    "weight must be [C, K], of the operand's dtype and device");
    STD_TORCH_CHECK(!bias || (bias->is_cpu() && bias->scalar_type() == x.scalar_type() && bias->dim() == 1 &&
                              bias->size(0) == x.size(1)),
                    "bias must be [C], of the operand's dtype and device");
  }

  template <typename T>
  cpu::CausalConv1dParams<T> params(bool silu) const {
    cpu::CausalConv1dParams<T> p;
    p.groups = cpu::Groups::of(sequences.count(), weight.numel());
    p.channels = x.size(1);
    p.width = weight.size(1);
    p.silu = silu;
    p.cu_seqlens = sequences.offsets.data();
    p.x = rows<T>(x);
    p.weight = static_cast<const T*>(weight.const_data_ptr());
    p.bias = data<T>(bias);
    return p;
  }
};

Tensor causal_conv1d(const Tensor& x, const Tensor& weight, const OptTensor& bias, const Tensor& cu_seqlens,
                     bool silu) {
  const ConvArgs args(x, weight, bias, cu_seqlens);
  const Tensor y = torch::stable::new_empty(x, {x.size(0), x.size(1)});
  dispatch_float(x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    auto p = args.params<T>(silu);
    p.y = mutable_rows<T>(y);
    run<T>(cpu::kernels<T>().causal_conv1d, p, false, p.num_items(), x.numel());
  });
  return y;
}

std::tuple<Tensor, Tensor, Tensor> causal_conv1d_backward(const Tensor& dy_, const Tensor& x, const Tensor& weight,
                                                          const OptTensor& bias, const Tensor& cu_seqlens, bool silu) {
  const ConvArgs args(x, weight, bias, cu_seqlens);
  const Tensor dy = with_contiguous_rows(dy_);
  check_rows(dy, x, "dy");
  const int64_t c = x.size(1), width = weight.size(1);
  const Tensor dx = torch::stable::new_empty(x, {x.size(0), c});
  const Tensor dw = torch::stable::new_empty(x, {c, width});
  const Tensor db = torch::stable::new_empty(x, {bias ? c : 0});
  dispatch_float(x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    auto p = args.params<T>(silu);
    std::vector<T> dw_partial(p.groups.count * c * width), db_partial(bias ? p.groups.count * c : 0);
    p.dy = rows<T>(dy);
    p.dx = mutable_rows<T>(dx);
    p.dweight = dw_partial.data(), p.dbias = bias ? db_partial.data() : nullptr;
    run<T>(cpu::kernels<T>().causal_conv1d, p, true, p.num_items(), x.numel());
    add_groups(dw_partial, c * width, dw);
    if (bias) add_groups(db_partial, c, db);
  });
  return {dx, dw, db};
}

}  // namespace
}  // namespace recgrela::ops

STABLE_TORCH_LIBRARY_FRAGMENT(recgrela, m) {
  m.def("causal_conv1d(Tensor x, Tensor weight, Tensor? bias, Tensor cu_seqlens, bool silu) -> Tensor");
  m.def(
      "causal_conv1d_backward(Tensor dy, Tensor x, Tensor weight, Tensor? bias, Tensor cu_seqlens, bool silu) -> "
      "(Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(recgrela, CPU, m) {
  m.impl("causal_conv1d", TORCH_BOX(&recgrela::ops::causal_conv1d));
  m.impl("causal_conv1d_backward", TORCH_BOX(&recgrela::ops::causal_conv1d_backward));
}
