// Parameters and entry point of causal_conv1d_step: one row of each of B sequences, C channels.
#pragma once

#include "kernels/common/params.h"

namespace recgrela::cuda {

struct CausalConv1dStepParams {
  DType dtype = DType::kFloat32;
  int64_t batch = 0;     // B
  int64_t channels = 0;  // C
  int kernel_size = 0;   // K, at least 1
  bool silu = false;

  RowMatrix x, y;                 // [B, C] of dtype
  const float* weight = nullptr;  // [C, K]
  const float* bias = nullptr;    // [C]; null: none
  RowMatrix history;              // [B, (K - 1) C] of dtype: K - 1 rows, oldest first; updated
};

cudaError_t causal_conv1d_step(const CausalConv1dStepParams& params, cudaStream_t stream);

}  // namespace recgrela::cuda
