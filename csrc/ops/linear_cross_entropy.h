// The operator linear_cross_entropy: its signature, operands and results on every backend. The forward computes the
// gradients that are asked for, and the backward multiplies them by d_loss.
#pragma once

#include "common.h"

namespace recgrela::ops {

struct LinearCrossEntropy {
  static constexpr char kName[] = "linear_cross_entropy";
  static constexpr const char* kSchemas[] = {
      "linear_cross_entropy(Tensor hidden, Tensor weight, Tensor target, Tensor? bias, ScalarType dtype, "
      "float label_smoothing, int max_logits, bool return_d_hidden, bool return_d_weight, bool return_d_bias) -> "
      "(Tensor loss, Tensor d_hidden, Tensor d_weight, Tensor d_bias)",
      "linear_cross_entropy_backward(Tensor d_loss, Tensor d_hidden, Tensor d_weight, Tensor d_bias) -> "
      "(Tensor, Tensor, Tensor)"};

  struct Operands {
    Tensor hidden, weight, target;
    OptTensor bias;
    ScalarType dtype;  // of products: that of hidden, or half precision for float32 rows
    double label_smoothing;
    int64_t max_logits;

    int64_t num_rows() const { return hidden.size(0); }
    int64_t dim() const { return hidden.size(1); }
    int64_t num_items() const { return weight.size(0); }
  };

  static Operands parse(Operands a) {
    const ScalarType type = state_type(a.hidden);
    check_operand(a.hidden, a.hidden, a.hidden.scalar_type(), {-1, -1}, "hidden");
    const bool is_half = a.dtype == ScalarType::Half || a.dtype == ScalarType::BFloat16;
    RECGRELA_CHECK(a.dtype == a.hidden.scalar_type() || (is_half && a.hidden.scalar_type() == ScalarType::Float),
                   "dtype must be that of hidden, or half precision if hidden is float32, not ",
                   torch::headeronly::toString(a.dtype));
    RECGRELA_CHECK(a.num_rows() > 0 && a.dim() > 0, "hidden [T, D] must not be empty");
    check_operand(a.weight, a.hidden, type, {-1, a.dim()}, "weight");
    RECGRELA_CHECK(a.num_items() > 0, "weight [n_items, D] must not be empty");
    check_operand(a.target, a.hidden, ScalarType::Long, {a.num_rows()}, "target");
    check_operand(a.bias, a.hidden, type, {a.num_items()}, "bias");
    RECGRELA_CHECK(a.label_smoothing >= 0 && a.label_smoothing <= 1, "label_smoothing must be within 0 .. 1, not ",
                   a.label_smoothing);
    RECGRELA_CHECK(a.max_logits > 0, "max_logits must be at least 1");
    a.hidden = with_contiguous_rows(a.hidden), a.weight = with_contiguous_rows(a.weight);
    a.target = contiguous(a.target), a.bias = contiguous(a.bias);
    return a;
  }

  // The dtype of d_hidden in the forward. float16 would round the gradients of a mean over many rows to zero before the
  // backward multiplies them by d_loss, the factor that training in float16 chooses to prevent this.
  static ScalarType hidden_gradient_type(const Tensor& hidden) {
    return hidden.scalar_type() == ScalarType::Half ? ScalarType::Float : hidden.scalar_type();
  }

  // Gradients that are not wanted have the shape [0].
  struct Outputs {
    Tensor loss, d_hidden, d_weight, d_bias;
  };
  struct Gradients {
    Tensor d_hidden, d_weight, d_bias;
  };
  using ThreeTensors = std::tuple<Tensor, Tensor, Tensor>;

  template <typename Backend>
  static std::tuple<Tensor, Tensor, Tensor, Tensor> forward(const Tensor& hidden, const Tensor& weight,
                                                            const Tensor& target, const OptTensor& bias,
                                                            ScalarType dtype, double label_smoothing,
                                                            int64_t max_logits, bool return_d_hidden,
                                                            bool return_d_weight, bool return_d_bias) {
    const Operands a = parse({hidden, weight, target, bias, dtype, label_smoothing, max_logits});
    RECGRELA_CHECK(!return_d_bias || bias, "there is no bias to return the gradient of");
    const Outputs out{make(a.weight, {}),
                      make_if(return_d_hidden, a.hidden, {a.num_rows(), a.dim()}, hidden_gradient_type(a.hidden)),
                      make_if(return_d_weight, a.weight, {a.num_items(), a.dim()}),
                      make_if(return_d_bias, a.weight, {a.num_items()})};
    Backend::forward(a, out);
    return {out.loss, out.d_hidden, out.d_weight, out.d_bias};
  }

  // The gradients are those of the forward, contiguous and of its dtypes.
  template <typename Backend>
  static ThreeTensors backward(const Tensor& d_loss, const Tensor& d_hidden, const Tensor& d_weight,
                               const Tensor& d_bias) {
    const ScalarType type = state_type(d_hidden);
    check_operand(d_loss, d_hidden, type, {}, "d_loss");
    const Gradients from{contiguous(d_hidden), contiguous(d_weight), contiguous(d_bias)};
    for (const Tensor* parameter : {&from.d_weight, &from.d_bias})
      RECGRELA_CHECK(parameter->scalar_type() == type && same_device(*parameter, d_hidden),
                     "gradients of weight and bias must be ", torch::headeronly::toString(type),
                     " on the device of d_hidden");
    const Gradients to{make_like(from.d_hidden), make_like(from.d_weight), make_like(from.d_bias)};
    Backend::backward(d_loss, from, to);
    return {to.d_hidden, to.d_weight, to.d_bias};
  }
};

}  // namespace recgrela::ops
