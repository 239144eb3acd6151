// The operator mlp: its signature, operands and results on every backend.
#pragma once

#include <array>

#include "common.h"

namespace recgrela::ops {

struct Mlp {
  static constexpr char kName[] = "mlp";
  static constexpr const char* kSchemas[] = {
      "mlp(Tensor x, Tensor w1, Tensor b1, Tensor w2, Tensor b2, Tensor? seed, str activation, float rate) -> "
      "Tensor y",
      "mlp_backward(Tensor d_y, Tensor x, Tensor w1, Tensor b1, Tensor w2, Tensor b2, Tensor? seed, str activation, "
      "float rate) -> (Tensor d_x, Tensor d_w1, Tensor d_b1, Tensor d_w2, Tensor d_b2)"};
  static constexpr std::array kActivations{"none", "relu", "silu", "gelu"};

  // An activation by its index in kActivations, in the order of the kernels' enumerations.
  template <typename Activation>
  static Activation activation_as(const std::string& activation) {
    const auto found = std::find(kActivations.begin(), kActivations.end(), activation);
    RECGRELA_CHECK(found != kActivations.end(), "activation must be none, relu, silu or gelu, not ", activation);
    return static_cast<Activation>(found - kActivations.begin());
  }

  // Weights and biases have the dtype of states, which is float32 for rows in half precision.
  struct Operands {
    Tensor x, w1, b1, w2, b2;
    OptTensor seed;
    std::string activation;
    double rate;

    int64_t num_rows() const { return x.size(0); }
    int64_t in_features() const { return x.size(1); }
    int64_t hidden_features() const { return w1.size(0); }
    int64_t out_features() const { return w2.size(0); }
    int64_t work() const { return num_rows() * hidden_features() * (in_features() + out_features()); }
    // Elements of the hidden layer and of the output, which dropout counts. It counts a multiple of 16 elements for a
    // row of the hidden layer, so that two elements of a kernel's tile have the same hash.
    int64_t hidden_numel() const { return num_rows() * ((hidden_features() + 15) / 16 * 16); }
    int64_t out_numel() const { return num_rows() * out_features(); }
  };

  static Operands parse(Operands a) {
    const ScalarType type = state_type(a.x);
    check_operand(a.x, a.x, a.x.scalar_type(), {-1, -1}, "x");
    check_operand(a.w1, a.x, type, {-1, a.in_features()}, "w1");
    check_operand(a.b1, a.x, type, {a.hidden_features()}, "b1");
    check_operand(a.w2, a.x, type, {-1, a.hidden_features()}, "w2");
    check_operand(a.b2, a.x, type, {a.out_features()}, "b2");
    RECGRELA_CHECK(a.in_features() > 0 && a.hidden_features() > 0 && a.out_features() > 0,
                   "x, w1 and w2 must have at least one feature");
    a.x = with_contiguous_rows(a.x), a.w1 = with_contiguous_rows(a.w1), a.w2 = with_contiguous_rows(a.w2);
    a.b1 = contiguous(a.b1), a.b2 = contiguous(a.b2), a.seed = contiguous(a.seed);
    return a;
  }

  struct Outputs {
    Tensor y;
  };

  struct Gradients {
    Tensor d_y, d_x, d_w1, d_b1, d_w2, d_b2;
  };

  template <typename Backend>
  static Tensor forward(const Tensor& x, const Tensor& w1, const Tensor& b1, const Tensor& w2, const Tensor& b2,
                        const OptTensor& seed, std::string activation, double rate) {
    const Operands a = parse({x, w1, b1, w2, b2, seed, activation, rate});
    const Outputs out{make(a.x, {a.num_rows(), a.out_features()})};
    Backend::forward(a, out);
    return out.y;
  }

  template <typename Backend>
  static std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> backward(const Tensor& d_y, const Tensor& x,
                                                                     const Tensor& w1, const Tensor& b1,
                                                                     const Tensor& w2, const Tensor& b2,
                                                                     const OptTensor& seed, std::string activation,
                                                                     double rate) {
    const Operands a = parse({x, w1, b1, w2, b2, seed, activation, rate});
    check_operand(d_y, a.x, a.x.scalar_type(), {a.num_rows(), a.out_features()}, "d_y");
    const Gradients grads{with_contiguous_rows(d_y), make_like(a.x),  make_like(a.w1),
                          make_like(a.b1),           make_like(a.w2), make_like(a.b2)};
    Backend::backward(a, grads);
    return {grads.d_x, grads.d_w1, grads.d_b1, grads.d_w2, grads.d_b2};
  }
};

}  // namespace recgrela::ops
