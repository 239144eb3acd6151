// The operands of selective_scan and its gradients, checked, for the CPU and for CUDA.
#pragma once

#include "common.h"

namespace recgrela::ops {

inline constexpr const char* kSelectiveScanSchemas[] = {
    "selective_scan(Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? delta_bias, "
    "Tensor cu_seqlens, Tensor? initial_state, bool delta_softplus, bool return_state, bool keep_states) -> "
    "(Tensor, Tensor, Tensor)",
    "selective_scan_backward(Tensor dy, Tensor? d_state, Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, "
    "Tensor? D, Tensor? z, Tensor? delta_bias, Tensor cu_seqlens, Tensor? initial_state, Tensor kept, "
    "bool delta_softplus) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"};

struct SelectiveScanArgs {
  static constexpr int64_t kMostStates = 256;
  static constexpr int64_t kCheckpointRows = cpu::kCheckpointRows;  // as in recgrela/ops/selective_scan.py

  Tensor u, delta, A, B, C;
  OptTensor D, z, delta_bias;
  Tensor cu_seqlens;
  OptTensor initial_state;
  bool delta_softplus;

  SelectiveScanArgs(const Tensor& u_, const Tensor& delta_, const Tensor& A_, const Tensor& B_, const Tensor& C_,
                    const OptTensor& D_, const OptTensor& z_, const OptTensor& delta_bias_, const Tensor& cu_seqlens_,
                    const OptTensor& initial_state_, bool delta_softplus)
      : u(with_contiguous_rows(u_)),
        delta(with_contiguous_rows(delta_)),
        A(torch::stable::contiguous(A_)),
        B(with_contiguous_rows(B_)),
        C(with_contiguous_rows(C_)),
        D(contiguous(D_)),
        z(z_ ? OptTensor(with_contiguous_rows(*z_)) : z_),
        delta_bias(contiguous(delta_bias_)),
        cu_seqlens(torch::stable::contiguous(cu_seqlens_)),
        initial_state(contiguous(initial_state_)),
        delta_softplus(delta_softplus) {
    check_rows(u, u, "u");
    check_rows(delta, u, "delta");
    if (z) check_rows(*z, u, "z");
    check_cu_seqlens(cu_seqlens, u);
    check_operand(A, u, wide(), {channels(), -1}, "A");
    STD_TORCH_CHECK(states() >= 1 && states() <= kMostStates, "A must have 1 to ", kMostStates, " states, not ",
                    states());
    check_operand(B, u, u.scalar_type(), {num_rows(), states()}, "B");
    check_operand(C, u, u.scalar_type(), {num_rows(), states()}, "C");
    check_operand(D, u, wide(), {channels()}, "D");
    check_operand(delta_bias, u, wide(), {channels()}, "delta_bias");
    check_operand(initial_state, u, wide(), {batch(), channels(), states()}, "initial_state");
  }

  // The dtype of A, D, delta_bias and of the states.
  ScalarType wide() const { return state_type(u); }
  int64_t num_rows() const { return u.size(0); }
  int64_t channels() const { return u.size(1); }
  int64_t states() const { return A.size(1); }
  int64_t batch() const { return cu_seqlens.size(0) - 1; }
  // The states before row 32 j of sequence b are number cu_seqlens[b] / 32 + b + j of so many.
  int64_t checkpoints() const { return num_rows() / kCheckpointRows + batch(); }
  Tensor make(bool wanted, std::initializer_list<int64_t> shape, ScalarType type) const {
    return torch::stable::new_empty(u, wanted ? std::vector<int64_t>(shape) : std::vector<int64_t>{0}, type);
  }
  // An empty tensor of the dtype of `u` where the operand is absent.
  Tensor gradient_of(const OptTensor& x, std::initializer_list<int64_t> shape) const {
    return make(x.has_value(), shape, x ? x->scalar_type() : u.scalar_type());
  }
};

struct SelectiveScanOutputs {
  Tensor y, state, kept;  // the latter two are empty where they are not asked for

  SelectiveScanOutputs(const SelectiveScanArgs& a, bool return_state, bool keep_states)
      : y(a.make(true, {a.num_rows(), a.channels()}, a.u.scalar_type())),
        state(a.make(return_state, {a.batch(), a.channels(), a.states()}, a.wide())),
        kept(a.make(keep_states, {a.checkpoints(), a.channels(), a.states()}, a.wide())) {}
};

struct SelectiveScanGradients {
  Tensor dy;
  OptTensor d_state;  // of the states behind the sequences
  Tensor kept;
  Tensor du, ddelta, dA, dB, dC, dD, dz, d_delta_bias, d_initial_state;  // absent operands get an empty gradient

  SelectiveScanGradients(const SelectiveScanArgs& a, const Tensor& dy_, const OptTensor& d_state_, const Tensor& kept_)
      : dy(with_contiguous_rows(dy_)),
        d_state(contiguous(d_state_)),
        kept(torch::stable::contiguous(kept_)),
        du(a.gradient_of(a.u, {a.num_rows(), a.channels()})),
        ddelta(a.gradient_of(a.delta, {a.num_rows(), a.channels()})),
        dA(a.gradient_of(a.A, {a.channels(), a.states()})),
        dB(a.gradient_of(a.B, {a.num_rows(), a.states()})),
        dC(a.gradient_of(a.C, {a.num_rows(), a.states()})),
        dD(a.gradient_of(a.D, {a.channels()})),
        dz(a.gradient_of(a.z, {a.num_rows(), a.channels()})),
        d_delta_bias(a.gradient_of(a.delta_bias, {a.channels()})),
        d_initial_state(a.gradient_of(a.initial_state, {a.batch(), a.channels(), a.states()})) {
    check_rows(dy, a.u, "dy");
    check_operand(d_state, a.u, a.wide(), {a.batch(), a.channels(), a.states()}, "the state's gradient");
    check_operand(kept, a.u, a.wide(), {a.checkpoints(), a.channels(), a.states()}, "kept");
  }

  using Tuple = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;
  Tuple tuple() const { return {du, ddelta, dA, dB, dC, dD, dz, d_delta_bias, d_initial_state}; }
};

}  // namespace recgrela::ops
