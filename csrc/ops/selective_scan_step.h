// The operator selective_scan_step: its signature, operands and result on every backend.
#pragma once

#include "common.h"

namespace recgrela::ops {

struct SelectiveScanStep {
  static constexpr char kName[] = "selective_scan_step";
  static constexpr const char* kSchemas[] = {
      "selective_scan_step(Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? "
      "delta_bias, Tensor(a!) state, bool delta_softplus) -> Tensor y"};

  struct Operands {
    Tensor u, delta, A, B, C;
    OptTensor D, z, delta_bias;
    Tensor state;
    bool delta_softplus;

    int64_t batch() const { return u.size(0); }
    int64_t channels() const { return u.size(1); }
    int64_t num_states() const { return A.size(1); }
  };

  static Operands parse(Operands o) {
    const ScalarType rows = o.u.scalar_type(), wide = state_type(o.u);
    check_operand(o.u, o.u, rows, {-1, -1}, "u");
    const int64_t b = o.batch(), c = o.channels();
    check_operand(o.A, o.u, wide, {c, -1}, "A");
    const int64_t n = o.num_states();
    RECGRELA_CHECK(n > 0, "A must have at least one state");
    check_operand(o.delta, o.u, rows, {b, c}, "delta");
    check_operand(o.B, o.u, rows, {b, n}, "B");
    check_operand(o.C, o.u, rows, {b, n}, "C");
    check_operand(o.D, o.u, wide, {c}, "D");
    check_operand(o.z, o.u, rows, {b, c}, "z");
    check_operand(o.delta_bias, o.u, wide, {c}, "delta_bias");
    check_state(o.state, o.u, wide, {b, c, n}, "state");
    o.u = with_contiguous_rows(o.u), o.delta = with_contiguous_rows(o.delta), o.z = with_contiguous_rows(o.z);
    o.B = with_contiguous_rows(o.B), o.C = with_contiguous_rows(o.C), o.A = contiguous(o.A);
    o.D = contiguous(o.D), o.delta_bias = contiguous(o.delta_bias);
    return o;
  }

  template <typename Backend>
  static Tensor forward(const Tensor& u, const Tensor& delta, const Tensor& A, const Tensor& B, const Tensor& C,
                        const OptTensor& D, const OptTensor& z, const OptTensor& delta_bias, const Tensor& state,
                        bool delta_softplus) {
    const Operands o = parse({u, delta, A, B, C, D, z, delta_bias, state, delta_softplus});
    const Tensor y = make_like(o.u);
    Backend::forward(o, y);
    return y;
  }
};

}  // namespace recgrela::ops
