// The operator add_norm: its signature, operands and results on every backend.
#pragma once

#include "common.h"

namespace recgrela::ops {

struct AddNorm {
  static constexpr char kName[] = "add_norm";
  // `dtype` is that of z and normed. All other rows and the parameters are float64 if it is, else float32. The residual
  // stream is empty if it equals an operand or `normed`: in pre-norm without z, and in post-norm in one dtype. In the
  // backward, x is the sum that was normalized if pre-norm, z is absent if pre-norm, and d_z is empty if there was no
  // branch (with_z) or if it equals d_x.
  static constexpr const char* kSchemas[] = {
      "add_norm(Tensor x, Tensor? z, Tensor weight, Tensor bias, Tensor? sequence, Tensor? seed, float eps, "
      "bool post_norm, float dropout, float drop_path, ScalarType dtype) -> (Tensor residual, Tensor normed)",
      "add_norm_backward(Tensor? d_residual, Tensor? d_normed, Tensor x, Tensor? z, Tensor weight, Tensor? sequence, "
      "Tensor? seed, float eps, bool post_norm, float dropout, float drop_path, ScalarType dtype, bool with_z) -> "
      "(Tensor d_x, Tensor d_z, Tensor d_weight, Tensor d_bias)"};

  struct Operands {
    Tensor x;
    OptTensor z;
    Tensor weight;
    OptTensor bias, sequence, seed;  // the backward does not need the bias
    double eps;
    bool post_norm;
    double dropout, drop_path;
    ScalarType dtype;

    int64_t num_rows() const { return x.size(0); }
    int64_t width() const { return x.size(1); }
    Shape shape() const { return {num_rows(), width()}; }
    bool drops() const { return dropout > 0 || drop_path > 0; }
  };

  static Operands parse(Operands a) {
    const ScalarType wide = a.dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
    check_operand(a.x, a.x, wide, {-1, -1}, "x");
    RECGRELA_CHECK(a.width() > 0, "x must have a width above 0");
    check_operand(a.z, a.x, a.dtype, a.shape(), "z");
    check_operand(a.weight, a.x, wide, {a.width()}, "weight");
    check_operand(a.bias, a.x, wide, {a.width()}, "bias");
    check_operand(a.sequence, a.x, ScalarType::Long, {a.num_rows()}, "sequence");
    a.x = with_contiguous_rows(a.x), a.z = with_contiguous_rows(a.z);
    a.weight = contiguous(a.weight), a.bias = contiguous(a.bias), a.sequence = contiguous(a.sequence);
    return a;
  }

  struct Outputs {
    Tensor residual, normed;
  };

  struct Gradients {
    OptTensor d_residual, d_normed;
    Tensor d_x, d_z, d_weight, d_bias;
  };

  template <typename Backend>
  static std::tuple<Tensor, Tensor> forward(const Tensor& x, const OptTensor& z, const Tensor& weight,
                                            const Tensor& bias, const OptTensor& sequence, const OptTensor& seed,
                                            double eps, bool post_norm, double dropout, double drop_path,
                                            ScalarType dtype) {
    const Operands a = parse({x, z, weight, bias, sequence, seed, eps, post_norm, dropout, drop_path, dtype});
    const bool with_residual = post_norm ? dtype != x.scalar_type() : z.has_value();
    const Outputs out{make_if(with_residual, a.x, a.shape()), make(a.x, a.shape(), dtype)};
    Backend::forward(a, out);
    return {out.residual, out.normed};
  }

  template <typename Backend>
  static std::tuple<Tensor, Tensor, Tensor, Tensor> backward(const OptTensor& d_residual, const OptTensor& d_normed,
                                                             const Tensor& x, const OptTensor& z, const Tensor& weight,
                                                             const OptTensor& sequence, const OptTensor& seed,
                                                             double eps, bool post_norm, double dropout,
                                                             double drop_path, ScalarType dtype, bool with_z) {
    const Operands a = parse({x, z, weight, {}, sequence, seed, eps, post_norm, dropout, drop_path, dtype});
    check_operand(d_residual, a.x, a.x.scalar_type(), a.shape(), "d_residual");
    check_operand(d_normed, a.x, dtype, a.shape(), "d_normed");
    RECGRELA_CHECK(post_norm || !z, "the backward of pre-norm takes the sum as x, and no z");
    const bool with_d_z = with_z && (a.drops() || dtype != x.scalar_type());
    const Gradients grads{with_contiguous_rows(d_residual),
                          with_contiguous_rows(d_normed),
                          make(a.x, a.shape()),
                          make_if(with_d_z, a.x, a.shape(), dtype),
                          make_like(a.weight),
                          make_like(a.weight)};
    Backend::backward(a, grads);
    return {grads.d_x, grads.d_z, grads.d_weight, grads.d_bias};
  }
};

}  // namespace recgrela::ops
