// The operator rela_block_step: its signature, operands and result. Only the CPU has kernels: elsewhere other operators
// run.
#pragma once

#include "common.h"
#include "gated_rela_step.h"
#include "mlp.h"

namespace recgrela::ops {

struct RelaBlockStep {
  static constexpr char kName[] = "rela_block_step";
  static constexpr const char* kSchemas[] = {
      "rela_block_step(Tensor x, Tensor(a!) kv_state, Tensor(b!) history, Tensor(c!) position, Tensor norm1_weight, "
      "Tensor norm1_bias, Tensor in_weight, Tensor in_bias, Tensor? gate_weight, Tensor? gate_bias, Tensor qk_weight, "
      "Tensor qk_bias, Tensor out_weight, Tensor out_bias, Tensor norm2_weight, Tensor norm2_bias, Tensor w1, Tensor "
      "b1, "
      "Tensor w2, Tensor b2, Tensor? turns, Tensor? conv_weight, Tensor? conv_bias, int num_heads, float eps, "
      "float norm_eps, str activation) -> Tensor y"};

  struct Operands {
    Tensor x;  // [B, D]
    Tensor kv_state, history, position;
    Tensor norm1_weight, norm1_bias, in_weight, in_bias;
    OptTensor gate_weight, gate_bias;
    Tensor qk_weight, qk_bias, out_weight, out_bias, norm2_weight, norm2_bias, w1, b1, w2, b2;
    OptTensor turns, conv_weight, conv_bias;
    int64_t num_heads;
    double eps, norm_eps;
    std::string activation;

    int64_t batch() const { return x.size(0); }
    int64_t width() const { return x.size(1); }
    int64_t head_dim() const { return width() / num_heads; }
    int64_t kernel_size() const { return conv_weight ? conv_weight->size(1) : 0; }
    int64_t hidden_features() const { return w1.size(0); }
    int64_t work() const { return batch() * width() * (5 * width() + 2 * hidden_features()); }
  };

  static Operands parse(Operands a) {
    const ScalarType type = a.x.scalar_type();
    check_operand(a.x, a.x, type, {-1, -1}, "x");
    const int64_t d = a.width();
    check_rela_step(a.x, a.kv_state, a.history, a.position, a.turns, a.conv_weight, a.conv_bias, a.num_heads);
    RECGRELA_CHECK(a.gate_weight.has_value() == a.gate_bias.has_value(), "gate_weight and gate_bias go together");
    auto layer = [&](auto& weight, auto& bias, int64_t out, int64_t in, const char* name, const char* bias_name) {
      check_operand(weight, a.x, type, {out, in}, name);
      check_operand(bias, a.x, type, {out}, bias_name);
      weight = with_contiguous_rows(weight), bias = contiguous(bias);
    };
    layer(a.in_weight, a.in_bias, d, d, "in_weight", "in_bias");
    layer(a.gate_weight, a.gate_bias, d, d, "gate_weight", "gate_bias");
    layer(a.qk_weight, a.qk_bias, 2 * d, d, "qk_weight", "qk_bias");
    layer(a.out_weight, a.out_bias, d, d, "out_weight", "out_bias");
    layer(a.w1, a.b1, a.hidden_features(), d, "w1", "b1");
    layer(a.w2, a.b2, d, a.hidden_features(), "w2", "b2");
    RECGRELA_CHECK(a.hidden_features() > 0, "w1 must have at least one feature");
    auto norm = [&](Tensor& x, const char* name) {
      check_operand(x, a.x, type, {d}, name);
      x = contiguous(x);
    };
    norm(a.norm1_weight, "norm1_weight"), norm(a.norm1_bias, "norm1_bias");
    norm(a.norm2_weight, "norm2_weight"), norm(a.norm2_bias, "norm2_bias");
    a.x = with_contiguous_rows(a.x);
    a.turns = contiguous(a.turns), a.conv_weight = contiguous(a.conv_weight), a.conv_bias = contiguous(a.conv_bias);
    return a;
  }

  template <typename Backend>
  static Tensor forward(const Tensor& x, const Tensor& kv_state, const Tensor& history, const Tensor& position,
                        const Tensor& norm1_weight, const Tensor& norm1_bias, const Tensor& in_weight,
                        const Tensor& in_bias, const OptTensor& gate_weight, const OptTensor& gate_bias,
                        const Tensor& qk_weight, const Tensor& qk_bias, const Tensor& out_weight,
                        const Tensor& out_bias, const Tensor& norm2_weight, const Tensor& norm2_bias, const Tensor& w1,
                        const Tensor& b1, const Tensor& w2, const Tensor& b2, const OptTensor& turns,
                        const OptTensor& conv_weight, const OptTensor& conv_bias, int64_t num_heads, double eps,
                        double norm_eps, std::string activation) {
    const Operands a = parse(
        {x,         kv_state,  history, position,    norm1_weight, norm1_bias,   in_weight,  in_bias,  gate_weight,
         gate_bias, qk_weight, qk_bias, out_weight,  out_bias,     norm2_weight, norm2_bias, w1,       b1,
         w2,        b2,        turns,   conv_weight, conv_bias,    num_heads,    eps,        norm_eps, activation});
    const Tensor y = make_like(a.x);
    Backend::forward(a, y);
    return y;
  }
};

}  // namespace recgrela::ops
