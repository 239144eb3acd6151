// The operator selective_scan: its signature, operands and results on every backend.
#pragma once

#include "common.h"

namespace recgrela::ops {

struct SelectiveScan {
  static constexpr int64_t kMaxStates = 256;

  static constexpr char kName[] = "selective_scan";
  static constexpr const char* kSchemas[] = {
      "selective_scan(Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? delta_bias, "
      "Tensor cu_seqlens, Tensor? initial_state, bool delta_softplus, bool return_state, bool return_checkpoints) -> "
      "(Tensor y, Tensor final_state, Tensor checkpoints)",
      "selective_scan_backward(Tensor d_y, Tensor? d_final_state, Tensor u, Tensor delta, Tensor A, Tensor B, "
      "Tensor C, Tensor? D, Tensor? z, Tensor? delta_bias, Tensor cu_seqlens, Tensor? initial_state, "
      "Tensor checkpoints, bool delta_softplus) -> (Tensor d_u, Tensor d_delta, Tensor d_A, Tensor d_B, Tensor d_C, "
      "Tensor d_D, Tensor d_z, Tensor d_delta_bias, Tensor d_initial_state)"};

  struct Operands {
    Tensor u, delta, A, B, C;
    OptTensor D, z, delta_bias;
    Tensor cu_seqlens;
    OptTensor initial_state;
    bool delta_softplus;

    ScalarType state_dtype() const { return state_type(u); }  // of A, D and delta_bias too
    int64_t num_rows() const { return u.size(0); }
    int64_t channels() const { return u.size(1); }
    int64_t num_states() const { return A.size(1); }
    int64_t batch() const { return cu_seqlens.size(0) - 1; }
    Shape state_shape() const { return {batch(), channels(), num_states()}; }
    // With checkpoints every n rows, the state before row n j of sequence b is checkpoint cu_seqlens[b] / n + b + j.
    // Each backend has its n, as recgrela/ops/selective_scan.py knows.
    template <typename Backend>
    Shape checkpoints_shape() const {
      return {num_rows() / Backend::kCheckpointRows + batch(), channels(), num_states()};
    }
  };

  static Operands parse(Operands a) {
    const ScalarType type = a.u.scalar_type();
    check_operand(a.u, a.u, type, {-1, -1}, "u");
    const int64_t t = a.num_rows(), c = a.channels();
    check_operand(a.delta, a.u, type, {t, c}, "delta");
    check_cu_seqlens(a.cu_seqlens, a.u);
    check_operand(a.A, a.u, a.state_dtype(), {c, -1}, "A");
    const int64_t n = a.num_states();
    RECGRELA_CHECK(n >= 1 && n <= kMaxStates, "A must have 1 to ", kMaxStates, " states, not ", n);
    check_operand(a.B, a.u, type, {t, n}, "B");
    check_operand(a.C, a.u, type, {t, n}, "C");
    check_operand(a.D, a.u, a.state_dtype(), {c}, "D");
    check_operand(a.z, a.u, type, {t, c}, "z");
    check_operand(a.delta_bias, a.u, a.state_dtype(), {c}, "delta_bias");
    check_operand(a.initial_state, a.u, a.state_dtype(), a.state_shape(), "initial_state");
    a.u = with_contiguous_rows(a.u), a.delta = with_contiguous_rows(a.delta), a.A = contiguous(a.A);
    a.B = with_contiguous_rows(a.B), a.C = with_contiguous_rows(a.C), a.D = contiguous(a.D);
    a.z = with_contiguous_rows(a.z), a.delta_bias = contiguous(a.delta_bias);
    a.cu_seqlens = contiguous(a.cu_seqlens), a.initial_state = contiguous(a.initial_state);
    return a;
  }

  struct Outputs {
    Tensor y, final_state, checkpoints;
  };

  struct Gradients {
    Tensor d_y;
    OptTensor d_final_state;
    Tensor checkpoints;
    Tensor d_u, d_delta, d_A, d_B, d_C, d_D, d_z, d_delta_bias, d_initial_state;
  };

  template <typename Backend>
  static std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& u, const Tensor& delta, const Tensor& A,
                                                    const Tensor& B, const Tensor& C, const OptTensor& D,
                                                    const OptTensor& z, const OptTensor& delta_bias,
                                                    const Tensor& cu_seqlens, const OptTensor& initial_state,
                                                    bool delta_softplus, bool return_state, bool return_checkpoints) {
    const Operands a = parse({u, delta, A, B, C, D, z, delta_bias, cu_seqlens, initial_state, delta_softplus});
    const Outputs out{make_like(a.u), make_if(return_state, a.u, a.state_shape(), a.state_dtype()),
                      make_if(return_checkpoints, a.u, a.checkpoints_shape<Backend>(), a.state_dtype())};
    Backend::forward(a, out);
    return {out.y, out.final_state, out.checkpoints};
  }

  template <typename Backend>
  static std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> backward(
      const Tensor& d_y, const OptTensor& d_final_state, const Tensor& u, const Tensor& delta, const Tensor& A,
      const Tensor& B, const Tensor& C, const OptTensor& D, const OptTensor& z, const OptTensor& delta_bias,
      const Tensor& cu_seqlens, const OptTensor& initial_state, const Tensor& checkpoints, bool delta_softplus) {
    const Operands a = parse({u, delta, A, B, C, D, z, delta_bias, cu_seqlens, initial_state, delta_softplus});
    check_operand(d_y, a.u, a.u.scalar_type(), {a.num_rows(), a.channels()}, "d_y");
    check_operand(d_final_state, a.u, a.state_dtype(), a.state_shape(), "d_final_state");
    check_operand(checkpoints, a.u, a.state_dtype(), a.checkpoints_shape<Backend>(), "checkpoints");
    const Gradients grads{with_contiguous_rows(d_y),
                          contiguous(d_final_state),
                          contiguous(checkpoints),
                          make_like(a.u),
                          make_like(a.delta),
                          make_like(a.A),
                          make_like(a.B),
                          make_like(a.C),
                          make_gradient(a.D, a.u),
                          make_gradient(a.z, a.u),
                          make_gradient(a.delta_bias, a.u),
                          make_gradient(a.initial_state, a.u)};
    Backend::backward(a, grads);
    return {grads.d_u,          grads.d_delta,        grads.d_A, grads.d_B, grads.d_C, grads.d_D, grads.d_z,
            grads.d_delta_bias, grads.d_initial_state};
  }
};

}  // namespace recgrela::ops
