// The operator selective_scan, and its implementation for the CPU.
#include "selective_scan.h"

namespace recgrela::ops {
namespace {

template <typename T>
cpu::SelectiveScanParams<T> make_params(const SelectiveScanArgs& a, const Sequences& sequences) {
  cpu::SelectiveScanParams<T> p;
  p.groups = cpu::Groups::of(sequences.count(), a.A.numel());
  p.num_rows = a.num_rows(), p.channels = a.channels(), p.num_states = a.states();
  p.set_parts();
  p.softplus = a.delta_softplus;
  p.cu_seqlens = sequences.offsets.data();
  p.u = rows<T>(a.u), p.delta = rows<T>(a.delta), p.B = rows<T>(a.B), p.C = rows<T>(a.C);
  if (a.z) p.z = rows<T>(*a.z);
  p.A = data<T>(a.A), p.D = data<T>(a.D), p.delta_bias = data<T>(a.delta_bias);
  p.initial_state = data<T>(a.initial_state);
  return p;
}

// The parts' sums, [parts, T, N], added up in a fixed order.
template <typename T>
void add_parts(const std::vector<T>& partial, const Tensor& out) {
  const int64_t n = out.numel();
  T* const total = static_cast<T*>(out.mutable_data_ptr());
  std::copy_n(partial.begin(), n, total);
  for (size_t part = n; part < partial.size(); part += n)
    for (int64_t i = 0; i < n; ++i) total[i] += partial[part + i];
}

std::tuple<Tensor, Tensor, Tensor> selective_scan(const Tensor& u, const Tensor& delta, const Tensor& A,
                                                  const Tensor& B, const Tensor& C, const OptTensor& D,
                                                  const OptTensor& z, const OptTensor& delta_bias,
                                                  const Tensor& cu_seqlens, const OptTensor& initial_state,
                                                  bool delta_softplus, bool return_state, bool keep_states) {
  const SelectiveScanArgs args(u, delta, A, B, C, D, z, delta_bias, cu_seqlens, initial_state, delta_softplus);
  const SelectiveScanOutputs out(args, return_state, keep_states);
  const Sequences sequences = read_sequences(args.cu_seqlens, args.num_rows());
  dispatch_float(u.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    auto p = make_params<T>(args, sequences);
    p.y = mutable_rows<T>(out.y);
    if (return_state) p.final_state = mutable_data<T>(out.state);
    if (keep_states) p.kept = mutable_data<T>(out.kept);
    run<T>(cpu::kernels<T>().selective_scan, p, false, p.num_items(), u.numel() * args.states());
  });
  return {out.y, out.state, out.kept};
}

SelectiveScanGradients::Tuple selective_scan_backward(const Tensor& dy, const OptTensor& d_state, const Tensor& u,
                                                      const Tensor& delta, const Tensor& A, const Tensor& B,
                                                      const Tensor& C, const OptTensor& D, const OptTensor& z,
                                                      const OptTensor& delta_bias, const Tensor& cu_seqlens,
                                                      const OptTensor& initial_state, const Tensor& kept,
                                                      bool delta_softplus) {
  const SelectiveScanArgs args(u, delta, A, B, C, D, z, delta_bias, cu_seqlens, initial_state, delta_softplus);
  const SelectiveScanGradients grads(args, dy, d_state, kept);
  const Sequences sequences = read_sequences(args.cu_seqlens, args.num_rows());
  dispatch_float(u.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    auto p = make_params<T>(args, sequences);
    const int64_t c = p.channels, groups = p.groups.count, parts = p.num_parts();
    std::vector<T> dA_partial(groups * c * p.num_states), dD_partial(D ? groups * c : 0);
    std::vector<T> dbias_partial(delta_bias ? groups * c : 0);
    std::vector<T> dB_partial(parts > 1 ? parts * args.B.numel() : 0), dC_partial(dB_partial.size());
    p.dy = rows<T>(grads.dy);
    p.saved = data<T>(grads.kept);
    p.final_state_grad = data<T>(grads.d_state);
    p.du = mutable_rows<T>(grads.du), p.ddelta = mutable_rows<T>(grads.ddelta);
    if (z) p.dz = mutable_rows<T>(grads.dz);
    p.dB = parts > 1 ? dB_partial.data() : mutable_data<T>(grads.dB);
    p.dC = parts > 1 ? dC_partial.data() : mutable_data<T>(grads.dC);
    p.dA = dA_partial.data();
    if (D) p.dD = dD_partial.data();
    if (delta_bias) p.ddelta_bias = dbias_partial.data();
    if (initial_state) p.initial_state_grad = mutable_data<T>(grads.d_initial_state);
    run<T>(cpu::kernels<T>().selective_scan, p, true, p.num_items(), u.numel() * args.states());
    add_groups(dA_partial, c * p.num_states, grads.dA);
    if (D) add_groups(dD_partial, c, grads.dD);
    if (delta_bias) add_groups(dbias_partial, c, grads.d_delta_bias);
    if (parts > 1) add_parts(dB_partial, grads.dB), add_parts(dC_partial, grads.dC);
  });
  return grads.tuple();
}

}  // namespace
}  // namespace recgrela::ops

STABLE_TORCH_LIBRARY_FRAGMENT(recgrela, m) {
  for (const char* schema : recgrela::ops::kSelectiveScanSchemas) m.def(schema);
}

STABLE_TORCH_LIBRARY_IMPL(recgrela, CPU, m) {
  m.impl("selective_scan", TORCH_BOX(&recgrela::ops::selective_scan));
  m.impl("selective_scan_backward", TORCH_BOX(&recgrela::ops::selective_scan_backward));
}
