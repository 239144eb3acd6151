// The operator linear_scan, and its implementation for the CPU.
#include "linear_scan.h"

namespace recgrela::ops {
namespace {

// A row of a scan is a few operations on memory: threads pay from so many elements on as of another op's times this.
constexpr int64_t kElementsPerUnit = 4;

// Calls f(T{}) with the type of the elements, which for complex operands are the halves of a number.
template <typename F>
void dispatch_elements(const Tensor& x, F&& f) {
  const ScalarType type = x.scalar_type();
  dispatch_float(type == ScalarType::ComplexFloat    ? ScalarType::Float
                 : type == ScalarType::ComplexDouble ? ScalarType::Double
                                                     : type,
                 f);
}

template <typename T>
cpu::Rows<T> element_rows(const Tensor& x) {
  return {static_cast<T*>(const_cast<void*>(x.const_data_ptr())), x.stride(0) * (is_complex(x) ? 2 : 1)};
}

template <typename T>
cpu::LinearScanParams<T> make_params(const LinearScanArgs& args, const Sequences& sequences) {
  cpu::LinearScanParams<T> p;
  p.complex = is_complex(args.x);
  p.width = args.channels() * (p.complex ? 2 : 1);
  p.groups = cpu::Groups::of(sequences.count(), p.width);
  p.set_part();
  p.cu_seqlens = sequences.offsets.data();
  p.a = args.per_step() ? element_rows<const T>(args.a) : cpu::Rows<const T>{data<T>(args.a), 0};
  p.initial_state = data<T>(args.initial_state);
  return p;
}

std::tuple<Tensor, Tensor> linear_scan(const Tensor& x, const Tensor& a, const Tensor& cu_seqlens,
                                       const OptTensor& initial_state, bool return_state) {
  const LinearScanArgs args(x, a, cu_seqlens, initial_state);
  const LinearScanOutputs out(args, return_state);
  const Sequences sequences = read_sequences(args.cu_seqlens, x.size(0));
  dispatch_elements(args.x, [&](auto zero) {
    using T = decltype(zero);
    auto p = make_params<T>(args, sequences);
    p.x = element_rows<const T>(args.x);
    p.h = element_rows<T>(out.h);
    if (return_state) p.final_state = mutable_data<T>(out.state);
    run<T>(cpu::kernels<T>().linear_scan, p, p.num_items(), args.x.numel() / kElementsPerUnit, 0);
  });
  return {out.h, out.state};
}

std::tuple<Tensor, Tensor, Tensor> linear_scan_backward(const Tensor& dh, const OptTensor& d_state, const Tensor& a,
                                                        const Tensor& cu_seqlens, const OptTensor& initial_state,
                                                        const Tensor& h) {
  const LinearScanArgs args(h, a, cu_seqlens, initial_state);
  const LinearScanGradients grads(args, dh, d_state);
  const Sequences sequences = read_sequences(args.cu_seqlens, h.size(0));
  dispatch_elements(args.x, [&](auto zero) {
    using T = decltype(zero);
    auto p = make_params<T>(args, sequences);
    std::vector<T> da_partial(args.per_step() ? 0 : p.groups.count * p.width);
    p.dh = element_rows<const T>(grads.dh);
    p.saved_h = element_rows<const T>(args.x);
    p.final_state_grad = data<T>(grads.d_state);
    p.dx = element_rows<T>(grads.dx);
    if (args.per_step()) {
      p.da = element_rows<T>(grads.da);
    } else {
      p.da_partial = da_partial.data();
    }
    if (initial_state) p.initial_state_grad = mutable_data<T>(grads.d_initial_state);
    run<T>(cpu::kernels<T>().linear_scan_backward, p, p.num_items(), args.x.numel() / kElementsPerUnit, 0);
    if (!args.per_step()) add_groups(da_partial, p.width, grads.da);
  });
  return {grads.dx, grads.da, grads.d_initial_state};
}

}  // namespace
}  // namespace recgrela::ops

STABLE_TORCH_LIBRARY_FRAGMENT(recgrela, m) {
  for (const char* schema : recgrela::ops::kLinearScanSchemas) m.def(schema);
}

STABLE_TORCH_LIBRARY_IMPL(recgrela, CPU, m) {
  m.impl("linear_scan", TORCH_BOX(&recgrela::ops::linear_scan));
  m.impl("linear_scan_backward", TORCH_BOX(&recgrela::ops::linear_scan_backward));
}
