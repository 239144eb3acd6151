// The operator causal_conv1d_step: its signature, operands and result on every backend.
#pragma once

#include "common.h"

namespace recgrela::ops {

struct CausalConv1dStep {
  static constexpr char kName[] = "causal_conv1d_step";
  static constexpr const char* kSchemas[] = {
      "causal_conv1d_step(Tensor x, Tensor weight, Tensor? bias, Tensor(a!) history, bool silu) -> Tensor y"};

  struct Operands {
    Tensor x, weight;
    OptTensor bias;
    Tensor history;
    bool silu;

    int64_t batch() const { return x.size(0); }
    int64_t channels() const { return x.size(1); }
    int64_t kernel_size() const { return weight.size(1); }
  };

  static Operands parse(Operands o) {
    check_operand(o.x, o.x, o.x.scalar_type(), {-1, -1}, "x");
    check_operand(o.weight, o.x, state_type(o.x), {o.channels(), -1}, "weight");
    RECGRELA_CHECK(o.kernel_size() > 0, "weight must have a kernel size of at least 1");
    check_operand(o.bias, o.x, state_type(o.x), {o.channels()}, "bias");
    check_state(o.history, o.x, o.x.scalar_type(), {o.batch(), o.kernel_size() - 1, o.channels()}, "history");
    o.x = with_contiguous_rows(o.x), o.weight = contiguous(o.weight), o.bias = contiguous(o.bias);
    return o;
  }

  template <typename Backend>
  static Tensor forward(const Tensor& x, const Tensor& weight, const OptTensor& bias, const Tensor& history,
                        bool silu) {
    const Operands o = parse({x, weight, bias, history, silu});
    const Tensor y = make_like(o.x);
    Backend::forward(o, y);
    return y;
  }
};

}  // namespace recgrela::ops
