// The operator linear: its signature, operands and results. Only CUDA has kernels: on a CPU, PyTorch's layers run.
#pragma once

#include "common.h"

namespace recgrela::ops {

struct Linear {
  static constexpr char kName[] = "linear";
  static constexpr const char* kSchemas[] = {
      "linear(Tensor x, Tensor weight, Tensor? bias, Tensor? weight2, Tensor? bias2) -> (Tensor y, Tensor y2)",
      "linear_backward(Tensor d_y, Tensor? d_y2, Tensor? d_passed, Tensor x, Tensor weight, Tensor? bias, "
      "Tensor? weight2, Tensor? bias2, bool needs_d_x) -> (Tensor d_x, Tensor d_weight, Tensor d_bias, Tensor "
      "d_weight2, "
      "Tensor d_bias2)"};

  // Parameters have the dtype of states, which is float32 for rows in half precision.
  struct Operands {
    Tensor x, weight;
    OptTensor bias, weight2, bias2;

    int64_t num_rows() const { return x.size(0); }
    int64_t width() const { return x.size(1); }
    int64_t outputs() const { return weight.size(0); }
    int64_t outputs2() const { return weight2 ? weight2->size(0) : 0; }
  };

  static Operands parse(Operands a) {
    const ScalarType type = state_type(a.x);
    check_operand(a.x, a.x, a.x.scalar_type(), {-1, -1}, "x");
    check_operand(a.weight, a.x, type, {-1, a.width()}, "weight");
    check_operand(a.bias, a.x, type, {a.outputs()}, "bias");
    check_operand(a.weight2, a.x, type, {-1, a.width()}, "weight2");
    RECGRELA_CHECK(a.weight2 || !a.bias2, "bias2 needs weight2");
    check_operand(a.bias2, a.x, type, {a.outputs2()}, "bias2");
    a.x = with_contiguous_rows(a.x), a.weight = contiguous(a.weight), a.weight2 = contiguous(a.weight2);
    a.bias = contiguous(a.bias), a.bias2 = contiguous(a.bias2);
    return a;
  }

  struct Outputs {
    Tensor y, y2;
  };

  struct Gradients {
    Tensor d_y;
    OptTensor d_y2, d_passed;  // d_passed: rows that are added to d_x
    Tensor d_x, d_weight, d_bias, d_weight2, d_bias2;
  };

  template <typename Backend>
  static std::tuple<Tensor, Tensor> forward(const Tensor& x, const Tensor& weight, const OptTensor& bias,
                                            const OptTensor& weight2, const OptTensor& bias2) {
    const Operands a = parse({x, weight, bias, weight2, bias2});
    const Outputs out{make(a.x, {a.num_rows(), a.outputs()}),
                      make_if(a.weight2.has_value(), a.x, {a.num_rows(), a.outputs2()})};
    Backend::forward(a, out);
    return {out.y, out.y2};
  }

  template <typename Backend>
  static std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> backward(const Tensor& d_y, const OptTensor& d_y2,
                                                                     const OptTensor& d_passed, const Tensor& x,
                                                                     const Tensor& weight, const OptTensor& bias,
                                                                     const OptTensor& weight2, const OptTensor& bias2,
                                                                     bool needs_d_x) {
    const Operands a = parse({x, weight, bias, weight2, bias2});
    const ScalarType type = a.x.scalar_type();
    RECGRELA_CHECK(d_y2.has_value() == a.weight2.has_value(), "d_y2 must be given if weight2 is, and only then");
    check_operand(d_y, a.x, type, {a.num_rows(), a.outputs()}, "d_y");
    check_operand(d_y2, a.x, type, {a.num_rows(), a.outputs2()}, "d_y2");
    RECGRELA_CHECK(needs_d_x || !d_passed, "d_passed needs d_x, which it is added to");
    check_operand(d_passed, a.x, type, {a.num_rows(), a.width()}, "d_passed");
    const Gradients grads{with_contiguous_rows(d_y),
                          with_contiguous_rows(d_y2),
                          with_contiguous_rows(d_passed),
                          make_if(needs_d_x, a.x, {a.num_rows(), a.width()}),
                          make_like(a.weight),
                          make_gradient(a.bias, a.weight),
                          make_gradient(a.weight2, a.weight),
                          make_gradient(a.bias2, a.weight)};
    Backend::backward(a, grads);
    return {grads.d_x, grads.d_weight, grads.d_bias, grads.d_weight2, grads.d_bias2};
  }
};

}  // namespace recgrela::ops
