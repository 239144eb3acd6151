// Parameters and entry points of causal_conv1d: B sequences, T rows in total, C channels, a kernel of size K.
#pragma once

#include "kernels/common/params.h"

namespace recgrela::cuda {

struct CausalConv1dParams {
  static constexpr int kMaxKernelSize = 4;

  DType dtype = DType::kFloat32;
  Sequences sequences;
  int64_t channels = 0;
  int kernel_size = 0;  // K, 1 to kMaxKernelSize
  bool silu = false;

  RowMatrix x;                    // [T, C] of dtype
  const float* weight = nullptr;  // [C, K]
  const float* bias = nullptr;    // [C]; may be null
  RowMatrix y;                    // [T, C] of dtype; forward only

  // The last K - 1 rows of x before and after each sequence, oldest first.
  const void* initial_history = nullptr;  // [B, K - 1, C] of dtype; null: zeros
  void* final_history = nullptr;          // may be null

  // Backward only.
  RowMatrix d_y, d_x;
  float* d_weight = nullptr;
  float* d_bias = nullptr;                // null if bias is
  const void* d_final_history = nullptr;  // null: zeros
  void* d_initial_history = nullptr;      // may be null

  void* workspace = nullptr;  // backward only; of the size that the function below returns, aligned to 256 bytes
};

size_t causal_conv1d_backward_workspace(const CausalConv1dParams& params);
cudaError_t causal_conv1d_forward(const CausalConv1dParams& params, cudaStream_t stream);
cudaError_t causal_conv1d_backward(const CausalConv1dParams& params, cudaStream_t stream);

}  // namespace recgrela::cuda
