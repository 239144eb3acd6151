// The operator rela_projections: its signature, operands and results. Only CUDA has kernels: elsewhere, add_norm and
// linear run.
#pragma once

#include "common.h"

namespace recgrela::ops {

struct RelaProjections {
  static constexpr char kName[] = "rela_projections";
  // x is float32, like the parameters; v, gate and qk are of `dtype`, and gate is empty without gate_weight. The
  // backward takes gate_weight and qk_weight only with the gradients of their outputs, and returns empty gradients
  // without them.
  static constexpr const char* kSchemas[] = {
      "rela_projections(Tensor x, Tensor norm_weight, Tensor norm_bias, Tensor in_weight, Tensor? in_bias, "
      "Tensor? gate_weight, Tensor? gate_bias, Tensor qk_weight, Tensor? qk_bias, float eps, ScalarType dtype) -> "
      "(Tensor v, Tensor gate, Tensor qk)",
      "rela_projections_backward(Tensor? d_residual, Tensor? d_v, Tensor? d_gate, Tensor? d_qk, Tensor x, Tensor v, "
      "Tensor norm_weight, Tensor norm_bias, Tensor in_weight, Tensor? gate_weight, Tensor? qk_weight, float eps) -> "
      "(Tensor d_x, Tensor d_norm_weight, Tensor d_norm_bias, Tensor d_in_weight, Tensor d_in_bias, "
      "Tensor d_gate_weight, Tensor d_gate_bias, Tensor d_qk_weight, Tensor d_qk_bias)"};

  struct Operands {
    Tensor x, norm_weight, norm_bias, in_weight;
    OptTensor in_bias, gate_weight, gate_bias, qk_weight, qk_bias;  // the backward needs no biases of the projections
    double eps;
    ScalarType dtype;
    OptTensor v;  // backward only

    int64_t num_rows() const { return x.size(0); }
    int64_t width() const { return x.size(1); }
    int64_t outputs() const { return qk_weight ? qk_weight->size(0) : 0; }
    Shape shape() const { return {num_rows(), width()}; }
  };

  static Operands parse(Operands a) {
    const ScalarType wide = ScalarType::Float;
    const int64_t width = a.x.dim() == 2 ? a.width() : -1;
    check_operand(a.x, a.x, wide, {-1, -1}, "x");
    check_operand(a.norm_weight, a.x, wide, {width}, "norm_weight");
    check_operand(a.norm_bias, a.x, wide, {width}, "norm_bias");
    check_operand(a.in_weight, a.x, wide, {width, width}, "in_weight");
    check_operand(a.in_bias, a.x, wide, {width}, "in_bias");
    check_operand(a.gate_weight, a.x, wide, {width, width}, "gate_weight");
    RECGRELA_CHECK(a.gate_weight || !a.gate_bias, "gate_bias needs gate_weight");
    check_operand(a.gate_bias, a.x, wide, {width}, "gate_bias");
    check_operand(a.qk_weight, a.x, wide, {-1, width}, "qk_weight");
    check_operand(a.qk_bias, a.x, wide, {a.outputs()}, "qk_bias");
    check_operand(a.v, a.x, a.dtype, a.shape(), "v");
    a.x = with_contiguous_rows(a.x), a.v = with_contiguous_rows(a.v);
    a.norm_weight = contiguous(a.norm_weight), a.norm_bias = contiguous(a.norm_bias);
    a.in_weight = contiguous(a.in_weight), a.in_bias = contiguous(a.in_bias);
    a.gate_weight = contiguous(a.gate_weight), a.gate_bias = contiguous(a.gate_bias);
    a.qk_weight = contiguous(a.qk_weight), a.qk_bias = contiguous(a.qk_bias);
    return a;
  }

  struct Outputs {
    Tensor v, gate, qk;
  };

  struct Gradients {
    OptTensor d_residual, d_v, d_gate, d_qk;
    Tensor d_x, d_norm_weight, d_norm_bias, d_in_weight, d_in_bias, d_gate_weight, d_gate_bias, d_qk_weight, d_qk_bias;
  };

  template <typename Backend>
  static std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& x, const Tensor& norm_weight, const Tensor& norm_bias,
                                                    const Tensor& in_weight, const OptTensor& in_bias,
                                                    const OptTensor& gate_weight, const OptTensor& gate_bias,
                                                    const Tensor& qk_weight, const OptTensor& qk_bias, double eps,
                                                    ScalarType dtype) {
    const Operands a = parse(
        {x, norm_weight, norm_bias, in_weight, in_bias, gate_weight, gate_bias, qk_weight, qk_bias, eps, dtype, {}});
    const Outputs out{make(a.x, a.shape(), dtype), make_if(a.gate_weight.has_value(), a.x, a.shape(), dtype),
                      make(a.x, {a.num_rows(), a.outputs()}, dtype)};
    Backend::forward(a, out);
    return {out.v, out.gate, out.qk};
  }

  template <typename Backend>
  static std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> backward(
      const OptTensor& d_residual, const OptTensor& d_v, const OptTensor& d_gate, const OptTensor& d_qk,
      const Tensor& x, const Tensor& v, const Tensor& norm_weight, const Tensor& norm_bias, const Tensor& in_weight,
      const OptTensor& gate_weight, const OptTensor& qk_weight, double eps) {
    const ScalarType dtype = v.scalar_type();
    const Operands a = parse({x, norm_weight, norm_bias, in_weight, {}, gate_weight, {}, qk_weight, {}, eps, dtype, v});
    RECGRELA_CHECK(d_gate.has_value() == gate_weight.has_value() && d_qk.has_value() == qk_weight.has_value(),
                   "d_gate and d_qk must be given with gate_weight and qk_weight, and only then");
    check_operand(d_residual, a.x, a.x.scalar_type(), a.shape(), "d_residual");
    check_operand(d_v, a.x, dtype, a.shape(), "d_v");
    check_operand(d_gate, a.x, dtype, a.shape(), "d_gate");
    check_operand(d_qk, a.x, dtype, {a.num_rows(), a.outputs()}, "d_qk");
    auto vector_if = [&](bool wanted, int64_t size) { return make_if(wanted, a.x, {size}); };
    const Gradients grads{with_contiguous_rows(d_residual),
                          with_contiguous_rows(d_v),
                          with_contiguous_rows(d_gate),
                          with_contiguous_rows(d_qk),
                          make(a.x, a.shape()),
                          make_like(a.norm_weight),
                          make_like(a.norm_bias),
                          make_like(a.in_weight),
                          make_like(a.norm_bias),
                          make_gradient(a.gate_weight, a.x),
                          vector_if(a.gate_weight.has_value(), a.width()),
                          make_gradient(a.qk_weight, a.x),
                          vector_if(a.qk_weight.has_value(), a.outputs())};
    Backend::backward(a, grads);
    return {grads.d_x,           grads.d_norm_weight, grads.d_norm_bias, grads.d_in_weight, grads.d_in_bias,
            grads.d_gate_weight, grads.d_gate_bias,   grads.d_qk_weight, grads.d_qk_bias};
  }
};

}  // namespace recgrela::ops
