// linear_scan on the CPU.
#include "linear_scan.h"

#include "cpu.h"
#include "cpu/linear_scan.h"

namespace recgrela::ops {
namespace {

// The scan does little work per element: starting a thread pays off only for this many times as many elements as in
// other ops.
constexpr int64_t kElementsPerUnit = 4;

// Calls f(T{}), where T is the real C++ type of the dtype; a complex number is two such elements.
template <typename F>
void dispatch_elements(ScalarType type, F&& f) {
  dispatch_float(type == ScalarType::ComplexFloat    ? ScalarType::Float
                 : type == ScalarType::ComplexDouble ? ScalarType::Double
                                                     : type,
                 f);
}

template <typename T>
cpu::LinearScanParams<T> make_params(const LinearScan::Operands& o, const Sequences& sequences) {
  cpu::LinearScanParams<T> p;
  p.complex = o.is_complex();
  p.width = o.channels() * (p.complex ? 2 : 1);
  p.groups = cpu::Groups::of(sequences.count(), p.width);
  p.set_item_width();
  p.cu_seqlens = sequences.offsets.data();
  p.initial_state = data<T>(o.initial_state);
  return p;
}

struct Cpu {
  static void forward(const LinearScan::Operands& o, const LinearScan::Outputs& out) {
    const Sequences sequences = read_sequences(o.cu_seqlens, o.num_rows());
    dispatch_elements(o.x.scalar_type(), [&](auto zero) {
      using T = decltype(zero);
      auto p = make_params<T>(o, sequences);
      p.a = coefficients<T>(o);
      p.x = elements(rows<T>(o.x), o);
      p.h = elements(mutable_rows<T>(out.h), o);
      p.final_state = mutable_data<T>(out.final_state);
      run_forward(cpu::linear_scan_kernels<T>(), p, p.num_items(), o.x.numel() / kElementsPerUnit);
    });
  }

  static void backward(const LinearScan::Operands& o, const LinearScan::Gradients& grads) {
    const Sequences sequences = read_sequences(o.cu_seqlens, o.num_rows());
    dispatch_elements(o.x.scalar_type(), [&](auto zero) {
      using T = decltype(zero);
      auto p = make_params<T>(o, sequences);
      PartialSums<T> d_a(o.per_step() ? 0 : p.groups.count, grads.d_a);
      p.a = coefficients<T>(o);
      p.d_h = elements(rows<T>(grads.d_h), o), p.saved_h = elements(rows<T>(o.x), o);
      p.d_x = elements(mutable_rows<T>(grads.d_x), o);
      p.d_a = elements(mutable_rows<T>(grads.d_a), o), p.d_a_partial = d_a.data();
      p.d_final_state = data<T>(grads.d_final_state);
      p.d_initial_state = mutable_data<T>(grads.d_initial_state);
      run_backward(cpu::linear_scan_kernels<T>(), p, p.num_items(), o.x.numel() / kElementsPerUnit);
      if (!o.per_step()) d_a.add_up();
    });
  }

  // Converts the stride of a matrix from numbers to real elements.
  template <typename T>
  static cpu::RowMatrix<T> elements(const cpu::RowMatrix<T>& rows, const LinearScan::Operands& o) {
    return {rows.data, rows.stride * (o.is_complex() ? 2 : 1)};
  }
  template <typename T>
  static cpu::RowMatrix<const T> coefficients(const LinearScan::Operands& o) {
    if (!o.per_step()) return {data<T>(o.a), 0};
    return elements(rows<T>(o.a), o);
  }
};

}  // namespace
}  // namespace recgrela::ops

RECGRELA_CPU_OP(LinearScan)
