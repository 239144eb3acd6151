// The operands of causal_conv1d and its gradients, checked, for the CPU and for CUDA.
#pragma once

#include "common.h"

namespace recgrela::ops {

inline constexpr const char* kConvSchemas[] = {
    "causal_conv1d(Tensor x, Tensor weight, Tensor? bias, Tensor cu_seqlens, Tensor? initial_values, bool silu, "
    "bool return_final_values) -> (Tensor, Tensor)",
    "causal_conv1d_backward(Tensor dy, Tensor? d_final_values, Tensor x, Tensor weight, Tensor? bias, "
    "Tensor cu_seqlens, Tensor? initial_values, bool silu) -> (Tensor, Tensor, Tensor, Tensor)"};

struct ConvArgs {
  Tensor x, weight;
  OptTensor bias;
  Tensor cu_seqlens;
  OptTensor values;  // the rows before each sequence
  bool silu;

  ConvArgs(const Tensor& x_, const Tensor& weight_, const OptTensor& bias_, const Tensor& cu_seqlens_,
           const OptTensor& values_, bool silu)
      : x(with_contiguous_rows(x_)),
        weight(torch::stable::contiguous(weight_)),
        bias(contiguous(bias_)),
        cu_seqlens(torch::stable::contiguous(cu_seqlens_)),
        values(contiguous(values_)),
        silu(silu) {
    check_rows(x, x, "x");
    check_cu_seqlens(cu_seqlens, x);
    check_operand(weight, x, x.scalar_type(), {channels(), -1}, "weight");
    STD_TORCH_CHECK(width() > 0, "weight has no taps");
    check_operand(bias, x, x.scalar_type(), {channels()}, "bias");
    check_operand(values, x, x.scalar_type(), {batch(), width() - 1, channels()}, "initial values");
  }

  int64_t channels() const { return x.size(1); }
  int64_t width() const { return weight.size(1); }
  int64_t batch() const { return cu_seqlens.size(0) - 1; }
  Tensor make(bool wanted, std::initializer_list<int64_t> shape) const {
    return torch::stable::new_empty(x, wanted ? std::vector<int64_t>(shape) : std::vector<int64_t>{0});
  }
};

struct ConvOutputs {
  Tensor y, values;  // values is empty where it is not asked for

  ConvOutputs(const ConvArgs& a, bool final_values)
      : y(a.make(true, {a.x.size(0), a.channels()})),
        values(a.make(final_values, {a.batch(), a.width() - 1, a.channels()})) {}
};

struct ConvGradients {
  Tensor dy;
  OptTensor d_values;                   // of the final values
  Tensor dx, dw, db, d_initial_values;  // absent operands get an empty gradient

  ConvGradients(const ConvArgs& a, const Tensor& dy_, const OptTensor& d_values_)
      : dy(with_contiguous_rows(dy_)),
        d_values(contiguous(d_values_)),
        dx(a.make(true, {a.x.size(0), a.channels()})),
        dw(a.make(true, {a.channels(), a.width()})),
        db(a.make(a.bias.has_value(), {a.channels()})),
        d_initial_values(a.make(a.values.has_value(), {a.batch(), a.width() - 1, a.channels()})) {
    check_rows(dy, a.x, "dy");
    check_operand(d_values, a.x, a.x.scalar_type(), {a.batch(), a.width() - 1, a.channels()},
                  "the final values' gradient");
  }
};

}  // namespace recgrela::ops
