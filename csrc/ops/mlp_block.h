// The operator mlp_block: its signature, operands and results. Only CUDA has kernels: on a CPU, other operators run.
#pragma once

#include "common.h"
#include "mlp.h"

namespace recgrela::ops {

struct MlpBlock {
  static constexpr char kName[] = "mlp_block";
  // `dtype` is that of z and of the rows inside. The residual stream and the parameters are float32. The sum is empty
  // if there is no z. In the backward, x is the sum that was normalized, and d_z is empty if there was no z (with_z) or
  // if it equals d_x.
  static constexpr const char* kSchemas[] = {
      "mlp_block(Tensor x, Tensor? z, Tensor norm_weight, Tensor norm_bias, Tensor w1, Tensor b1, Tensor w2, "
      "Tensor b2, Tensor? sequence, Tensor? seed, float eps, str activation, float dropout, float drop_path, "
      "ScalarType dtype) -> (Tensor sum, Tensor y)",
      "mlp_block_backward(Tensor d_y, Tensor x, Tensor norm_weight, Tensor norm_bias, Tensor w1, Tensor b1, Tensor w2, "
      "Tensor b2, Tensor? sequence, Tensor? seed, float eps, str activation, float dropout, float drop_path, "
      "ScalarType dtype, bool with_z) -> (Tensor d_x, Tensor d_z, Tensor d_norm_weight, Tensor d_norm_bias, "
      "Tensor d_w1, Tensor d_b1, Tensor d_w2, Tensor d_b2)"};

  struct Operands {
    Tensor x;
    OptTensor z;
    Tensor norm_weight, norm_bias;
    Tensor w1, b1, w2, b2;
    OptTensor sequence, seed;
    double eps;
    std::string activation;
    double dropout, drop_path;
    ScalarType dtype;

    int64_t num_rows() const { return x.size(0); }
    int64_t width() const { return x.size(1); }
    int64_t hidden_features() const { return w1.size(0); }
    Shape shape() const { return {num_rows(), width()}; }
    // Elements of the hidden layer, which dropout counts in rows of whole tiles, as mlp does.
    int64_t hidden_numel() const { return num_rows() * ((hidden_features() + 15) / 16 * 16); }
  };

  static Operands parse(Operands a) {
    constexpr ScalarType kFloat = ScalarType::Float;
    check_operand(a.x, a.x, kFloat, {-1, -1}, "x");
    check_operand(a.z, a.x, a.dtype, a.shape(), "z");
    check_operand(a.norm_weight, a.x, kFloat, {a.width()}, "norm_weight");
    check_operand(a.norm_bias, a.x, kFloat, {a.width()}, "norm_bias");
    check_operand(a.w1, a.x, kFloat, {-1, a.width()}, "w1");
    check_operand(a.b1, a.x, kFloat, {a.hidden_features()}, "b1");
    check_operand(a.w2, a.x, kFloat, {a.width(), a.hidden_features()}, "w2");
    check_operand(a.b2, a.x, kFloat, {a.width()}, "b2");
    check_operand(a.sequence, a.x, ScalarType::Long, {a.num_rows()}, "sequence");
    RECGRELA_CHECK(a.width() > 0 && a.hidden_features() > 0, "x and w1 must have at least one feature");
    a.x = with_contiguous_rows(a.x), a.z = with_contiguous_rows(a.z);
    a.norm_weight = contiguous(a.norm_weight), a.norm_bias = contiguous(a.norm_bias);
    a.w1 = contiguous(a.w1), a.b1 = contiguous(a.b1), a.w2 = contiguous(a.w2), a.b2 = contiguous(a.b2);
    a.sequence = contiguous(a.sequence), a.seed = contiguous(a.seed);
    return a;
  }

  struct Outputs {
    Tensor sum, y;
  };

  struct Gradients {
    Tensor d_y, d_x, d_z, d_norm_weight, d_norm_bias, d_w1, d_b1, d_w2, d_b2;
  };

  template <typename Backend>
  static std::tuple<Tensor, Tensor> forward(const Tensor& x, const OptTensor& z, const Tensor& norm_weight,
                                            const Tensor& norm_bias, const Tensor& w1, const Tensor& b1,
                                            const Tensor& w2, const Tensor& b2, const OptTensor& sequence,
                                            const OptTensor& seed, double eps, std::string activation, double dropout,
                                            double drop_path, ScalarType dtype) {
    const Operands a = parse(
        {x, z, norm_weight, norm_bias, w1, b1, w2, b2, sequence, seed, eps, activation, dropout, drop_path, dtype});
    const Outputs out{make_if(z.has_value(), a.x, a.shape()), make(a.x, a.shape())};
    Backend::forward(a, out);
    return {out.sum, out.y};
  }

  template <typename Backend>
  static std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> backward(
      const Tensor& d_y, const Tensor& x, const Tensor& norm_weight, const Tensor& norm_bias, const Tensor& w1,
      const Tensor& b1, const Tensor& w2, const Tensor& b2, const OptTensor& sequence, const OptTensor& seed,
      double eps, std::string activation, double dropout, double drop_path, ScalarType dtype, bool with_z) {
    const Operands a = parse(
        {x, {}, norm_weight, norm_bias, w1, b1, w2, b2, sequence, seed, eps, activation, dropout, drop_path, dtype});
    check_operand(d_y, a.x, a.x.scalar_type(), a.shape(), "d_y");
    const bool with_d_z = with_z && (drop_path > 0 || dtype != x.scalar_type());
    const Gradients g{with_contiguous_rows(d_y), make(a.x, a.shape()),   make_if(with_d_z, a.x, a.shape(), dtype),
                      make_like(a.norm_weight),  make_like(a.norm_bias), make_like(a.w1),
                      make_like(a.b1),           make_like(a.w2),        make_like(a.b2)};
    Backend::backward(a, g);
    return {g.d_x, g.d_z, g.d_norm_weight, g.d_norm_bias, g.d_w1, g.d_b1, g.d_w2, g.d_b2};
  }
};

}  // namespace recgrela::ops
