// The operator gated_rela_step: its signature, operands and result on every backend.
#pragma once

#include "common.h"

namespace recgrela::ops {

// Checks the state and the parameters of a step whose values are `v` [B, D].
inline void check_rela_step(const Tensor& v, const Tensor& kv_state, const Tensor& history, const Tensor& position,
                            const OptTensor& turns, const OptTensor& conv_weight, const OptTensor& conv_bias,
                            int64_t num_heads) {
  const ScalarType wide = state_type(v);
  const int64_t b = v.size(0), width = v.size(1);
  RECGRELA_CHECK(num_heads > 0 && width > 0 && width % num_heads == 0 && width / num_heads % 2 == 0, "num_heads ",
                 num_heads, " must divide the width ", width, " into heads of an even width");
  const int64_t d = width / num_heads;
  check_operand(turns, v, ScalarType::Long, {width / 2}, "turns");
  RECGRELA_CHECK(conv_weight.has_value() == conv_bias.has_value(), "conv_weight and conv_bias go together");
  check_operand(conv_weight, v, wide, {width, -1}, "conv_weight");
  check_operand(conv_bias, v, wide, {width}, "conv_bias");
  const int64_t kernel_size = conv_weight ? conv_weight->size(1) : 0;
  RECGRELA_CHECK(!conv_weight || kernel_size > 0, "conv_weight must have a kernel size of at least 1");
  check_state(kv_state, v, wide, {b, num_heads, d + 1, d}, "kv_state");
  check_state(history, v, v.scalar_type(), {b, std::max<int64_t>(kernel_size - 1, 0), width}, "history");
  check_state(position, v, ScalarType::Long, {b}, "position");
}

struct GatedRelaStep {
  static constexpr char kName[] = "gated_rela_step";
  static constexpr const char* kSchemas[] = {
      "gated_rela_step(Tensor q, Tensor? k, Tensor v, Tensor? g, Tensor(a!) kv_state, Tensor(b!) history, Tensor(c!) "
      "position, Tensor? turns, Tensor? conv_weight, Tensor? conv_bias, int num_heads, float eps) -> Tensor y"};

  struct Operands {
    Tensor q;  // [B, D], or [B, 2 D] with k to the right of q if there is no k
    OptTensor k;
    Tensor v;
    OptTensor g;
    Tensor kv_state, history, position;
    OptTensor turns, conv_weight, conv_bias;
    int64_t num_heads;
    double eps;

    int64_t batch() const { return v.size(0); }
    int64_t width() const { return v.size(1); }
    int64_t head_dim() const { return width() / num_heads; }
    int64_t kernel_size() const { return conv_weight ? conv_weight->size(1) : 0; }
  };

  static Operands parse(Operands a) {
    const ScalarType rows = a.v.scalar_type();
    check_operand(a.v, a.v, rows, {-1, -1}, "v");
    const int64_t b = a.batch(), width = a.width();
    check_rela_step(a.v, a.kv_state, a.history, a.position, a.turns, a.conv_weight, a.conv_bias, a.num_heads);
    check_operand(a.q, a.v, rows, {b, a.k ? width : 2 * width}, "q");
    check_operand(a.k, a.v, rows, {b, width}, "k");
    check_operand(a.g, a.v, rows, {b, width}, "g");
    a.q = with_contiguous_rows(a.q), a.k = with_contiguous_rows(a.k);
    a.v = with_contiguous_rows(a.v), a.g = with_contiguous_rows(a.g);
    a.turns = contiguous(a.turns), a.conv_weight = contiguous(a.conv_weight), a.conv_bias = contiguous(a.conv_bias);
    return a;
  }

  template <typename Backend>
  static Tensor forward(const Tensor& q, const OptTensor& k, const Tensor& v, const OptTensor& g,
                        const Tensor& kv_state, const Tensor& history, const Tensor& position, const OptTensor& turns,
                        const OptTensor& conv_weight, const OptTensor& conv_bias, int64_t num_heads, double eps) {
    const Operands a = parse({q, k, v, g, kv_state, history, position, turns, conv_weight, conv_bias, num_heads, eps});
    const Tensor y = make_like(a.v);
    Backend::forward(a, y);
    return y;
  }
};

}  // namespace recgrela::ops
