// Parameters and entry points of rela_projections: T rows of width D, projected to values and a gate of width D, and to
// N queries and keys.
#pragma once

#include "kernels/common/params.h"

namespace recgrela::cuda {

struct RelaProjectionsParams {
  static constexpr int kUnit = 16, kMinWidth = 32, kMaxWidth = 64;  // of D and N, and of D
  static constexpr int kMaxOutputs = 2 * kMaxWidth;                 // of N
  static constexpr int64_t kMaxRows = int64_t{1} << 30;

  DType dtype = DType::kBFloat16;  // of v, gate, qk and their gradients; not float32
  int64_t num_rows = 0;            // T
  int width = 0, outputs = 0;      // D, N; in the backward, N may be 0
  float eps = 0;
  int max_shared_bytes = 0;  // of a block; 0: as many as the device has

  // All rows are aligned to 16 bytes and less than 2^26 elements apart.
  RowMatrix x;            // [T, D], float32
  RowMatrix v, gate, qk;  // [T, D], [T, D], [T, N] of dtype; the backward reads v

  // Dense float32. Biases may be null. Without gate_weight there is no gate.
  const float *norm_weight = nullptr, *norm_bias = nullptr;  // [D]
  const float *in_weight = nullptr, *in_bias = nullptr;      // [D, D], [D]
  const float *gate_weight = nullptr, *gate_bias = nullptr;  // [D, D], [D]
  const float *qk_weight = nullptr, *qk_bias = nullptr;      // [N, D], [N]

  // Backward only.
  RowMatrix d_residual, d_v;  // [T, D], float32 and dtype; null: zeros
  RowMatrix d_gate, d_qk;     // [T, D], [T, N] of dtype, with gate_weight and if N > 0
  RowMatrix d_x;              // [T, D], float32
  float *d_norm_weight = nullptr, *d_norm_bias = nullptr;
  float *d_in_weight = nullptr, *d_in_bias = nullptr;
  float *d_gate_weight = nullptr, *d_gate_bias = nullptr;
  float *d_qk_weight = nullptr, *d_qk_bias = nullptr;
  void* workspace = nullptr;  // of the size that the function below returns, aligned to 256 bytes
};

size_t rela_projections_backward_workspace(const RelaProjectionsParams& params);
cudaError_t rela_projections_forward(const RelaProjectionsParams& params, cudaStream_t stream);
cudaError_t rela_projections_backward(const RelaProjectionsParams& params, cudaStream_t stream);

}  // namespace recgrela::cuda
