// The operator causal_conv1d, and its implementation for the CPU.
#include "causal_conv1d.h"

namespace recgrela::ops {
namespace {

template <typename T>
cpu::CausalConv1dParams<T> make_params(const ConvArgs& a, const Sequences& sequences) {
  cpu::CausalConv1dParams<T> p;
  p.groups = cpu::Groups::of(sequences.count(), a.weight.numel());
  p.channels = a.channels();
  p.width = a.width();
  p.silu = a.silu;
  p.cu_seqlens = sequences.offsets.data();
  p.x = rows<T>(a.x);
  p.weight = static_cast<const T*>(a.weight.const_data_ptr());
  p.bias = data<T>(a.bias);
  p.initial_values = data<T>(a.values);
  return p;
}

std::tuple<Tensor, Tensor> causal_conv1d(const Tensor& x, const Tensor& weight, const OptTensor& bias,
                                         const Tensor& cu_seqlens, const OptTensor& initial_values, bool silu,
                                         bool return_final_values) {
  const ConvArgs args(x, weight, bias, cu_seqlens, initial_values, silu);
  const ConvOutputs out(args, return_final_values);
  const Sequences sequences = read_sequences(args.cu_seqlens, x.size(0));
  dispatch_float(x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    auto p = make_params<T>(args, sequences);
    p.y = mutable_rows<T>(out.y);
    if (return_final_values) p.final_values = mutable_data<T>(out.values);
    run<T>(cpu::kernels<T>().causal_conv1d, p, false, p.num_items(), x.numel());
  });
  return {out.y, out.values};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> causal_conv1d_backward(const Tensor& dy, const OptTensor& d_final_values,
                                                                  const Tensor& x, const Tensor& weight,
                                                                  const OptTensor& bias, const Tensor& cu_seqlens,
                                                                  const OptTensor& initial_values, bool silu) {
  const ConvArgs args(x, weight, bias, cu_seqlens, initial_values, silu);
  const ConvGradients grads(args, dy, d_final_values);
  const Sequences sequences = read_sequences(args.cu_seqlens, x.size(0));
  const int64_t c = args.channels(), width = args.width();
  dispatch_float(x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    auto p = make_params<T>(args, sequences);
    std::vector<T> dw_partial(p.groups.count * c * width), db_partial(bias ? p.groups.count * c : 0);
    p.dy = rows<T>(grads.dy);
    p.dx = mutable_rows<T>(grads.dx);
    p.dweight = dw_partial.data(), p.dbias = bias ? db_partial.data() : nullptr;
    p.final_values_grad = data<T>(grads.d_values);
    if (args.values) p.initial_values_grad = mutable_data<T>(grads.d_initial_values);
    run<T>(cpu::kernels<T>().causal_conv1d, p, true, p.num_items(), x.numel());
    add_groups(dw_partial, c * width, grads.dw);
    if (bias) add_groups(db_partial, c, grads.db);
  });
  return {grads.dx, grads.dw, grads.db, grads.d_initial_values};
}

}  // namespace
}  // namespace recgrela::ops

STABLE_TORCH_LIBRARY_FRAGMENT(recgrela, m) {
  for (const char* schema : recgrela::ops::kConvSchemas) m.def(schema);
}

STABLE_TORCH_LIBRARY_IMPL(recgrela, CPU, m) {
  m.impl("causal_conv1d", TORCH_BOX(&recgrela::ops::causal_conv1d));
  m.impl("causal_conv1d_backward", TORCH_BOX(&recgrela::ops::causal_conv1d_backward));
}
