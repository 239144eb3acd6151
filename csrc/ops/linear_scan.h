// The operands of linear_scan and its gradients, checked, for the CPU and for CUDA.
#pragma once

#include "common.h"

namespace recgrela::ops {

inline constexpr const char* kLinearScanSchemas[] = {
    "linear_scan(Tensor x, Tensor a, Tensor cu_seqlens, Tensor? initial_state, bool return_state) -> (Tensor, Tensor)",
    "linear_scan_backward(Tensor dh, Tensor? d_state, Tensor a, Tensor cu_seqlens, Tensor? initial_state, Tensor h) "
    "-> (Tensor, Tensor, Tensor)"};

inline bool is_complex(const Tensor& x) {
  return x.scalar_type() == ScalarType::ComplexFloat || x.scalar_type() == ScalarType::ComplexDouble;
}

struct LinearScanArgs {
  Tensor x;  // of the backward: h, which has its shape and dtype
  Tensor a, cu_seqlens;
  OptTensor initial_state;

  LinearScanArgs(const Tensor& x_, const Tensor& a_, const Tensor& cu_seqlens_, const OptTensor& initial_state_)
      : x(with_contiguous_rows(x_)),
        a(a_.dim() == 2 ? with_contiguous_rows(a_) : torch::stable::contiguous(a_)),
        cu_seqlens(torch::stable::contiguous(cu_seqlens_)),
        initial_state(contiguous(initial_state_)) {
    check_rows(x, x, "x");
    check_cu_seqlens(cu_seqlens, x);
    if (per_step()) {
      check_operand(a, x, wide(), {x.size(0), channels()}, "a");
    } else {
      check_operand(a, x, wide(), {channels()}, "a");
    }
    check_operand(initial_state, x, wide(), {batch(), channels()}, "initial_state");
  }

  // The dtype of coefficients and states.
  ScalarType wide() const { return is_complex(x) ? x.scalar_type() : state_type(x); }
  bool per_step() const { return a.dim() == 2; }
  int64_t channels() const { return x.size(1); }
  int64_t batch() const { return cu_seqlens.size(0) - 1; }
  Tensor make(bool wanted, std::initializer_list<int64_t> shape, ScalarType type) const {
    return torch::stable::new_empty(x, wanted ? std::vector<int64_t>(shape) : std::vector<int64_t>{0}, type);
  }
};

struct LinearScanOutputs {
  Tensor h, state;  // state is empty where it is not asked for

  LinearScanOutputs(const LinearScanArgs& args, bool return_state)
      : h(args.make(true, {args.x.size(0), args.channels()}, args.x.scalar_type())),
        state(args.make(return_state, {args.batch(), args.channels()}, args.wide())) {}
};

struct LinearScanGradients {
  Tensor dh;
  OptTensor d_state;               // of the states behind the sequences
  Tensor dx, da, d_initial_state;  // the last is empty where there is no initial state

  LinearScanGradients(const LinearScanArgs& args, const Tensor& dh_, const OptTensor& d_state_)
      : dh(with_contiguous_rows(dh_)),
        d_state(contiguous(d_state_)),
        dx(args.make(true, {args.x.size(0), args.channels()}, args.x.scalar_type())),
        da(args.per_step() ? args.make(true, {args.x.size(0), args.channels()}, args.wide())
                           : args.make(true, {args.channels()}, args.wide())),
        d_initial_state(args.make(args.initial_state.has_value(), {args.batch(), args.channels()}, args.wide())) {
    check_rows(dh, args.x, "dh");
    check_operand(d_state, args.x, args.wide(), {args.batch(), args.channels()}, "the state's gradient");
  }
};

}  // namespace recgrela::ops
