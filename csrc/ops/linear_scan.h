// The operator linear_scan: its signature, operands and results on every backend.
#pragma once

#include "common.h"

namespace recgrela::ops {

struct LinearScan {
  static constexpr char kName[] = "linear_scan";
  static constexpr const char* kSchemas[] = {
      "linear_scan(Tensor x, Tensor a, Tensor cu_seqlens, Tensor? initial_state, bool return_state) -> "
      "(Tensor h, Tensor final_state)",
      "linear_scan_backward(Tensor d_h, Tensor? d_final_state, Tensor a, Tensor cu_seqlens, Tensor? initial_state, "
      "Tensor h) -> (Tensor d_x, Tensor d_a, Tensor d_initial_state)"};

  struct Operands {
    Tensor x;  // the backward passes h instead, which has the same shape and dtype
    Tensor a;  // [T, C], or [C] if it is the same at every step
    Tensor cu_seqlens;
    OptTensor initial_state;

    int64_t num_rows() const { return x.size(0); }
    int64_t channels() const { return x.size(1); }
    bool per_step() const { return a.dim() == 2; }
    bool is_complex() const {
      return x.scalar_type() == ScalarType::ComplexFloat || x.scalar_type() == ScalarType::ComplexDouble;
    }
    ScalarType state_dtype() const { return is_complex() ? x.scalar_type() : state_type(x); }  // of a too
    Shape state_shape() const { return {cu_seqlens.size(0) - 1, channels()}; }
  };

  static Operands parse(Operands o, const char* x) {
    check_operand(o.x, o.x, o.x.scalar_type(), {-1, -1}, x);
    check_cu_seqlens(o.cu_seqlens, o.x);
    const Shape per_step{o.num_rows(), o.channels()}, constant{o.channels()};
    check_operand(o.a, o.x, o.state_dtype(), o.per_step() ? per_step : constant, "a");
    check_operand(o.initial_state, o.x, o.state_dtype(), o.state_shape(), "initial_state");
    o.x = with_contiguous_rows(o.x);
    o.a = o.per_step() ? with_contiguous_rows(o.a) : contiguous(o.a);
    o.cu_seqlens = contiguous(o.cu_seqlens), o.initial_state = contiguous(o.initial_state);
    return o;
  }

  struct Outputs {
    Tensor h, final_state;
  };

  struct Gradients {
    Tensor d_h;
    OptTensor d_final_state;
    Tensor d_x, d_a, d_initial_state;
  };

  template <typename Backend>
  static std::tuple<Tensor, Tensor> forward(const Tensor& x, const Tensor& a, const Tensor& cu_seqlens,
                                            const OptTensor& initial_state, bool return_state) {
    const Operands o = parse({x, a, cu_seqlens, initial_state}, "x");
    const Outputs out{make_like(o.x), make_if(return_state, o.x, o.state_shape(), o.state_dtype())};
    Backend::forward(o, out);
    return {out.h, out.final_state};
  }

  template <typename Backend>
  static std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& d_h, const OptTensor& d_final_state, const Tensor& a,
                                                     const Tensor& cu_seqlens, const OptTensor& initial_state,
                                                     const Tensor& h) {
    const Operands o = parse({h, a, cu_seqlens, initial_state}, "h");
    check_operand(d_h, o.x, o.x.scalar_type(), {o.num_rows(), o.channels()}, "d_h");
    check_operand(d_final_state, o.x, o.state_dtype(), o.state_shape(), "d_final_state");
    const Gradients grads{with_contiguous_rows(d_h), contiguous(d_final_state), make_like(o.x), make_like(o.a),
                          make_gradient(o.initial_state, o.x)};
    Backend::backward(o, grads);
    return {grads.d_x, grads.d_a, grads.d_initial_state};
  }
};

}  // namespace recgrela::ops
