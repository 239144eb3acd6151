// The operator gated_rela: its signature, operands and results on every backend.
#pragma once

#include "common.h"

namespace recgrela::ops {

// Returns the width of a head, given the width of a row and the number of heads.
inline int64_t head_dim_of(int64_t width, int64_t num_heads) {
  RECGRELA_CHECK(num_heads > 0 && width % num_heads == 0 && width / num_heads % 2 == 0,
                 "num_heads must divide the width into heads of an even width");
  return width / num_heads;
}

// Checks that the rotary table, if there is one, covers the longest sequence.
inline void check_rotary_length(const OptTensor& rotary, int64_t max_seqlen) {
  RECGRELA_CHECK(!rotary || rotary->size(0) >= max_seqlen, "the rotary table has ", rotary ? rotary->size(0) : 0,
                 " positions; the longest sequence has ", max_seqlen, " rows");
}

// Checks the heads, the rotary table and the convolution of gated_rela or gated_rela_last.
template <typename Operands>
void check_heads(const Operands& a) {
  const ScalarType type = state_type(a.v);
  const int64_t d = a.width();
  head_dim_of(d, a.num_heads);
  check_operand(a.rotary, a.v, type, {-1, d / 2, 2}, "rotary");
  RECGRELA_CHECK(a.conv_weight.has_value() == a.conv_bias.has_value(), "conv_weight and conv_bias go together");
  check_operand(a.conv_weight, a.v, type, {d, -1}, "conv_weight");
  check_operand(a.conv_bias, a.v, type, {d}, "conv_bias");
  RECGRELA_CHECK(!a.conv_weight || a.kernel_size() > 0, "conv_weight must have a kernel size of at least 1");
}

struct GatedRela {
  static constexpr char kName[] = "gated_rela";
  static constexpr const char* kSchemas[] = {
      "gated_rela(Tensor q, Tensor? k, Tensor v, Tensor? g, Tensor cu_seqlens, Tensor? rotary, Tensor? conv_weight, "
      "Tensor? conv_bias, Tensor? initial_kv_state, Tensor? initial_history, Tensor? initial_position, int num_heads, "
      "bool causal, float eps, bool return_state) -> (Tensor y, Tensor final_kv_state, Tensor final_history, "
      "Tensor final_position)",
      "gated_rela_backward(Tensor d_y, Tensor? d_final_kv_state, Tensor? d_final_history, Tensor? final_kv_state, "
      "Tensor q, Tensor? k, "
      "Tensor v, Tensor? g, Tensor cu_seqlens, Tensor? rotary, Tensor? conv_weight, Tensor? conv_bias, "
      "Tensor? initial_kv_state, Tensor? initial_history, Tensor? initial_position, int num_heads, bool causal, "
      "float eps) -> (Tensor d_q, Tensor d_k, Tensor d_v, Tensor d_g, Tensor d_conv_weight, Tensor d_conv_bias, "
      "Tensor d_initial_kv_state, Tensor d_initial_history)"};

  struct Operands {
    Tensor q;  // contains q and k side by side if k is absent
    OptTensor k;
    Tensor v;
    OptTensor g;
    Tensor cu_seqlens;
    OptTensor rotary, conv_weight, conv_bias;
    OptTensor initial_kv_state, initial_history, initial_position;
    int64_t num_heads;
    bool causal;
    double eps;

    int64_t num_rows() const { return v.size(0); }
    int64_t width() const { return v.size(1); }
    int64_t head_dim() const { return width() / num_heads; }
    int64_t batch() const { return cu_seqlens.size(0) - 1; }
    int64_t kernel_size() const { return conv_weight ? conv_weight->size(1) : 0; }
    Shape kv_state_shape() const { return {batch(), num_heads, head_dim() + 1, head_dim()}; }
    Shape history_shape() const { return {batch(), std::max<int64_t>(kernel_size() - 1, 0), width()}; }
  };

  static Operands parse(Operands a) {
    const ScalarType type = a.v.scalar_type(), state_dtype = state_type(a.v);
    check_operand(a.v, a.v, type, {-1, -1}, "v");
    const int64_t t = a.num_rows(), d = a.width();
    check_operand(a.q, a.v, type, {t, a.k ? d : 2 * d}, "q");
    check_operand(a.k, a.v, type, {t, d}, "k");
    check_operand(a.g, a.v, type, {t, d}, "g");
    check_cu_seqlens(a.cu_seqlens, a.v);
    check_heads(a);
    RECGRELA_CHECK(a.initial_kv_state.has_value() == a.initial_history.has_value() &&
                       a.initial_kv_state.has_value() == a.initial_position.has_value(),
                   "initial_kv_state, initial_history and initial_position go together");
    check_state(a, a.initial_kv_state.has_value());
    check_operand(a.initial_kv_state, a.v, state_dtype, a.kv_state_shape(), "initial_kv_state");
    check_operand(a.initial_history, a.v, type, a.history_shape(), "initial_history");
    check_operand(a.initial_position, a.v, ScalarType::Long, {a.batch()}, "initial_position");
    a.q = with_contiguous_rows(a.q), a.k = with_contiguous_rows(a.k);
    a.v = with_contiguous_rows(a.v), a.g = with_contiguous_rows(a.g);
    a.cu_seqlens = contiguous(a.cu_seqlens), a.rotary = contiguous(a.rotary);
    a.conv_weight = contiguous(a.conv_weight), a.conv_bias = contiguous(a.conv_bias);
    a.initial_kv_state = contiguous(a.initial_kv_state), a.initial_history = contiguous(a.initial_history);
    a.initial_position = contiguous(a.initial_position);
    return a;
  }

  // A state of the bidirectional form is the sums over the keys of each sequence: with return_state the forward of the
  // CUDA backend returns it as final_kv_state, and the backward need not compute it again.
  static void check_state(const Operands& a, bool has_state) {
    RECGRELA_CHECK(a.causal || !has_state, "only the causal form has a state");
  }

  struct Outputs {
    Tensor y, final_kv_state, final_history, final_position;
  };

  struct Gradients {
    Tensor d_y;
    OptTensor d_final_kv_state, d_final_history, final_kv_state;
    Tensor d_q, d_k, d_v, d_g, d_conv_weight, d_conv_bias, d_initial_kv_state, d_initial_history;
  };

  template <typename Backend>
  static std::tuple<Tensor, Tensor, Tensor, Tensor> forward(
      const Tensor& q, const OptTensor& k, const Tensor& v, const OptTensor& g, const Tensor& cu_seqlens,
      const OptTensor& rotary, const OptTensor& conv_weight, const OptTensor& conv_bias,
      const OptTensor& initial_kv_state, const OptTensor& initial_history, const OptTensor& initial_position,
      int64_t num_heads, bool causal, double eps, bool return_state) {
    const Operands a = parse({q, k, v, g, cu_seqlens, rotary, conv_weight, conv_bias, initial_kv_state, initial_history,
                              initial_position, num_heads, causal, eps});
    const bool returns_history = return_state && a.causal;
    const Outputs out{make_like(a.v), make_if(return_state, a.v, a.kv_state_shape(), state_type(a.v)),
                      make_if(returns_history, a.v, a.history_shape()),
                      make_if(returns_history, a.v, {a.batch()}, ScalarType::Long)};
    Backend::forward(a, out);
    return {out.y, out.final_kv_state, out.final_history, out.final_position};
  }

  template <typename Backend>
  static std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> backward(
      const Tensor& d_y, const OptTensor& d_final_kv_state, const OptTensor& d_final_history,
      const OptTensor& final_kv_state, const Tensor& q, const OptTensor& k, const Tensor& v, const OptTensor& g,
      const Tensor& cu_seqlens, const OptTensor& rotary, const OptTensor& conv_weight, const OptTensor& conv_bias,
      const OptTensor& initial_kv_state, const OptTensor& initial_history, const OptTensor& initial_position,
      int64_t num_heads, bool causal, double eps) {
    const Operands a = parse({q, k, v, g, cu_seqlens, rotary, conv_weight, conv_bias, initial_kv_state, initial_history,
                              initial_position, num_heads, causal, eps});
    const ScalarType type = a.v.scalar_type();
    check_operand(d_y, a.v, type, {a.num_rows(), a.width()}, "d_y");
    check_state(a, d_final_kv_state || d_final_history);
    check_operand(d_final_kv_state, a.v, state_type(a.v), a.kv_state_shape(), "d_final_kv_state");
    check_operand(d_final_history, a.v, type, a.history_shape(), "d_final_history");
    RECGRELA_CHECK(!a.causal || !final_kv_state, "only the bidirectional form takes final_kv_state");
    check_operand(final_kv_state, a.v, state_type(a.v), a.kv_state_shape(), "final_kv_state");
    const Gradients grads{with_contiguous_rows(d_y),
                          contiguous(d_final_kv_state),
                          contiguous(d_final_history),
                          contiguous(final_kv_state),
                          make_like(a.q),
                          make_gradient(a.k, a.v),
                          make_like(a.v),
                          make_gradient(a.g, a.v),
                          make_gradient(a.conv_weight, a.v),
                          make_gradient(a.conv_bias, a.v),
                          make_gradient(a.initial_kv_state, a.v),
                          make_gradient(a.initial_history, a.v)};
    Backend::backward(a, grads);
    return {grads.d_q,
            grads.d_k,
            grads.d_v,
            grads.d_g,
            grads.d_conv_weight,
            grads.d_conv_bias,
            grads.d_initial_kv_state,
            grads.d_initial_history};
  }
};

}  // namespace recgrela::ops
