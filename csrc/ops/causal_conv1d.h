// The operator causal_conv1d: its signature, operands and results on every backend.
#pragma once

#include "common.h"

namespace recgrela::ops {

struct CausalConv1d {
  static constexpr char kName[] = "causal_conv1d";
  static constexpr const char* kSchemas[] = {
      "causal_conv1d(Tensor x, Tensor weight, Tensor? bias, Tensor cu_seqlens, Tensor? initial_history, bool silu, "
      "bool return_final_history) -> (Tensor y, Tensor final_history)",
      "causal_conv1d_backward(Tensor d_y, Tensor? d_final_history, Tensor x, Tensor weight, Tensor? bias, "
      "Tensor cu_seqlens, Tensor? initial_history, bool silu) -> (Tensor d_x, Tensor d_weight, Tensor d_bias, "
      "Tensor d_initial_history)"};

  struct Operands {
    Tensor x, weight;
    OptTensor bias;
    Tensor cu_seqlens;
    OptTensor initial_history;
    bool silu;

    int64_t num_rows() const { return x.size(0); }
    int64_t channels() const { return x.size(1); }
    int64_t kernel_size() const { return weight.size(1); }
    Shape history_shape() const { return {cu_seqlens.size(0) - 1, kernel_size() - 1, channels()}; }
  };

  static Operands parse(Operands a) {
    const ScalarType type = a.x.scalar_type();
    check_operand(a.x, a.x, type, {-1, -1}, "x");
    check_cu_seqlens(a.cu_seqlens, a.x);
    check_operand(a.weight, a.x, state_type(a.x), {a.channels(), -1}, "weight");
    RECGRELA_CHECK(a.kernel_size() > 0, "weight must have a kernel size of at least 1");
    check_operand(a.bias, a.x, state_type(a.x), {a.channels()}, "bias");
    check_operand(a.initial_history, a.x, type, a.history_shape(), "initial_history");
    a.x = with_contiguous_rows(a.x);
    a.weight = contiguous(a.weight), a.bias = contiguous(a.bias);
    a.cu_seqlens = contiguous(a.cu_seqlens), a.initial_history = contiguous(a.initial_history);
    return a;
  }

  struct Outputs {
    Tensor y, final_history;
  };

  struct Gradients {
    Tensor d_y;
    OptTensor d_final_history;
    Tensor d_x, d_weight, d_bias, d_initial_history;
  };

  template <typename Backend>
  static std::tuple<Tensor, Tensor> forward(const Tensor& x, const Tensor& weight, const OptTensor& bias,
                                            const Tensor& cu_seqlens, const OptTensor& initial_history, bool silu,
                                            bool return_final_history) {
    const Operands a = parse({x, weight, bias, cu_seqlens, initial_history, silu});
    const Outputs out{make_like(a.x), make_if(return_final_history, a.x, a.history_shape())};
    Backend::forward(a, out);
    return {out.y, out.final_history};
  }

  template <typename Backend>
  static std::tuple<Tensor, Tensor, Tensor, Tensor> backward(const Tensor& d_y, const OptTensor& d_final_history,
                                                             const Tensor& x, const Tensor& weight,
                                                             const OptTensor& bias, const Tensor& cu_seqlens,
                                                             const OptTensor& initial_history, bool silu) {
    const Operands a = parse({x, weight, bias, cu_seqlens, initial_history, silu});
    check_operand(d_y, a.x, a.x.scalar_type(), {a.num_rows(), a.channels()}, "d_y");
    check_operand(d_final_history, a.x, a.x.scalar_type(), a.history_shape(), "d_final_history");
    const Gradients grads{
        with_contiguous_rows(d_y), contiguous(d_final_history), make_like(a.x),
        make_like(a.weight),       make_gradient(a.bias, a.x),  make_gradient(a.initial_history, a.x)};
    Backend::backward(a, grads);
    return {grads.d_x, grads.d_weight, grads.d_bias, grads.d_initial_history};
  }
};

}  // namespace recgrela::ops
