// The operands of gated_rela and its gradients, checked, for the CPU and for CUDA.
#pragma once

#include "common.h"

namespace recgrela::ops {

inline constexpr const char* kRelaSchemas[] = {
    "gated_rela(Tensor q, Tensor? k, Tensor v, Tensor? g, Tensor cu_seqlens, Tensor? rotary, Tensor? conv_weight, "
    "Tensor? conv_bias, Tensor? initial_sums, Tensor? initial_values, Tensor? initial_position, int num_heads, "
    "bool causal, float eps, bool return_state) -> (Tensor, Tensor, Tensor, Tensor)",
    "gated_rela_backward(Tensor dy, Tensor? d_final_sums, Tensor? d_final_values, Tensor q, Tensor? k, Tensor v, "
    "Tensor? g, Tensor cu_seqlens, Tensor? rotary, Tensor? conv_weight, Tensor? conv_bias, Tensor? initial_sums, "
    "Tensor? initial_values, Tensor? initial_position, int num_heads, bool causal, float eps) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"};

struct RelaArgs {
  Tensor q, v;  // q holds q and k side by side when there is no k
  OptTensor k, g;
  Tensor cu_seqlens;
  OptTensor rotary, conv_weight, conv_bias;
  OptTensor sums, values, count;  // the initial state
  int64_t num_heads;
  bool causal;
  double eps;

  RelaArgs(const Tensor& q_, const OptTensor& k_, const Tensor& v_, const OptTensor& g_, const Tensor& cu_seqlens_,
           const OptTensor& rotary_, const OptTensor& conv_weight_, const OptTensor& conv_bias_, const OptTensor& sums_,
           const OptTensor& values_, const OptTensor& count_, int64_t num_heads, bool causal, double eps)
      : q(with_contiguous_rows(q_)),
        v(with_contiguous_rows(v_)),
        k(k_ ? OptTensor(with_contiguous_rows(*k_)) : k_),
        g(g_ ? OptTensor(with_contiguous_rows(*g_)) : g_),
        cu_seqlens(torch::stable::contiguous(cu_seqlens_)),
        rotary(contiguous(rotary_)),
        conv_weight(contiguous(conv_weight_)),
        conv_bias(contiguous(conv_bias_)),
        sums(contiguous(sums_)),
        values(contiguous(values_)),
        count(contiguous(count_)),
        num_heads(num_heads),
        causal(causal),
        eps(eps) {
    check_rows(v, v, "v");
    const int64_t d = width();
    if (k) check_rows(*k, v, "k");
    if (g) check_rows(*g, v, "g");
    STD_TORCH_CHECK(same_device(q, v) && q.scalar_type() == v.scalar_type() && q.dim() == 2 && q.size(0) == v.size(0) &&
                        q.size(1) == (k ? d : 2 * d),
                    "q must have the rows, dtype and device of v, and its width (twice that without k)");
    STD_TORCH_CHECK(num_heads > 0 && d % num_heads == 0 && d / num_heads % 2 == 0,
                    "num_heads must divide the width into heads of an even width");
    check_cu_seqlens(cu_seqlens, v);
    check_operand(rotary, v, state_type(v), {-1, d / 2, 2}, "rotary");
    STD_TORCH_CHECK(conv_weight.has_value() == conv_bias.has_value(), "conv_weight and conv_bias go together");
    check_operand(conv_weight, v, v.scalar_type(), {d, -1}, "conv_weight");
    check_operand(conv_bias, v, v.scalar_type(), {d}, "conv_bias");
    STD_TORCH_CHECK(!conv_weight || conv_weight->size(1) > 0, "conv_weight has no taps");
    STD_TORCH_CHECK(sums.has_value() == values.has_value() && sums.has_value() == count.has_value(),
                    "the three parts of the initial state go together");
    STD_TORCH_CHECK(!sums || causal, "only the causal form has a state");
    check_operand(sums, v, state_type(v), {batch(), num_heads, head_dim() + 1, head_dim()}, "initial sums");
    check_operand(values, v, v.scalar_type(), {batch(), history(), d}, "initial values");
    check_operand(count, v, ScalarType::Long, {batch()}, "initial position");
  }

  int64_t width() const { return v.size(1); }
  int64_t head_dim() const { return width() / num_heads; }
  int64_t batch() const { return cu_seqlens.size(0) - 1; }
  int64_t conv_width() const { return conv_weight ? conv_weight->size(1) : 0; }
  int64_t history() const { return std::max<int64_t>(conv_width() - 1, 0); }
  // A tensor of the operands' device, empty where it is not wanted.
  Tensor make(bool wanted, std::initializer_list<int64_t> shape, std::optional<ScalarType> type = {}) const {
    return torch::stable::new_empty(v, wanted ? std::vector<int64_t>(shape) : std::vector<int64_t>{0}, type);
  }
};

struct RelaOutputs {
  Tensor y, sums, values, count;  // the last three are empty where no state is asked for

  RelaOutputs(const RelaArgs& a, bool state)
      : y(a.make(true, {a.v.size(0), a.width()})),
        sums(a.make(state, {a.batch(), a.num_heads, a.head_dim() + 1, a.head_dim()}, state_type(a.v))),
        values(a.make(state, {a.batch(), a.history(), a.width()})),
        count(a.make(state, {a.batch()}, ScalarType::Long)) {
    STD_TORCH_CHECK(!state || a.causal, "only the causal form has a state");
  }
};
using RelaResult = std::tuple<Tensor, Tensor, Tensor, Tensor>;

struct RelaGradients {
  Tensor dy;
  OptTensor d_sums, d_values;                                       // of the final state
  Tensor dq, dk, dv, dg, dw, db, d_initial_sums, d_initial_values;  // absent operands get an empty gradient

  RelaGradients(const RelaArgs& a, const Tensor& dy_, const OptTensor& d_sums_, const OptTensor& d_values_)
      : dy(with_contiguous_rows(dy_)),
        d_sums(contiguous(d_sums_)),
        d_values(contiguous(d_values_)),
        dq(a.make(true, {a.q.size(0), a.q.size(1)})),
        dk(a.make(a.k.has_value(), {a.v.size(0), a.width()})),
        dv(a.make(true, {a.v.size(0), a.width()})),
        dg(a.make(a.g.has_value(), {a.v.size(0), a.width()})),
        dw(a.make(a.conv_width() > 0, {a.width(), a.conv_width()})),
        db(a.make(a.conv_width() > 0, {a.width()})),
        d_initial_sums(
            a.make(a.sums.has_value(), {a.batch(), a.num_heads, a.head_dim() + 1, a.head_dim()}, state_type(a.v))),
        d_initial_values(a.make(a.values.has_value(), {a.batch(), a.history(), a.width()})) {
    check_rows(dy, a.v, "dy");
    check_operand(d_sums, a.v, state_type(a.v), {a.batch(), a.num_heads, a.head_dim() + 1, a.head_dim()},
                  "the final sums' gradient");
    check_operand(d_values, a.v, a.v.scalar_type(), {a.batch(), a.history(), a.width()}, "the final values' gradient");
    STD_TORCH_CHECK(a.causal || (!d_sums && !d_values), "only the causal form has a state");
  }

  std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> result() const {
    return {dq, dk, dv, dg, dw, db, d_initial_sums, d_initial_values};
  }
};
using RelaGradientResult = decltype(std::declval<RelaGradients>().result());

}  // namespace recgrela::ops
