// The operands of selective_scan and its gradients, for the CPU and for CUDA.
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

}  // namespace recgrela::ops
