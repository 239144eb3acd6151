// The operands of linear_scan and its gradients, for the CPU and for CUDA.
#pragma once

#include "common.h"

namespace recgrela::ops {

inline constexpr const char* kLinearScanSchemas[] = {
    "linear_scan(Tensor x, Tensor a, Tensor cu_seqlens, Tensor? initial_state, bool return_state) -> (Tensor, Tensor)",
    "linear_scan_backward(Tensor dh, Tensor? d_state, Tensor a, Tensor cu_seqlens, Tensor? initial_state, Tensor h) "
    "-> (Tensor, Tensor, Tensor)"};

}  // namespace recgrela::ops
