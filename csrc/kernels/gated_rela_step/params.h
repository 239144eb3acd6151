// Parameters and entry point of gated_rela_step: one row of each of B sequences, H heads of d channels, D = H d.
#pragma once

#include "kernels/common/params.h"

namespace recgrela::cuda {

struct GatedRelaStepParams {
  DType dtype = DType::kFloat32;
  int64_t batch = 0;  // B
  int num_heads = 0;
  int head_dim = 0;     // 8, 16, 32, 64 or 128
  int kernel_size = 0;  // K; 0: no convolution
  float eps = 0;

  RowMatrix q, k, v, g;                // [B, D] of dtype; g may be absent
  const int64_t* turns = nullptr;      // [D / 2], angles per position in units of 2^-64 turns; null: no rotation
  const float* conv_weight = nullptr;  // [D, K]
  const float* conv_bias = nullptr;    // [D]
  float* kv_state = nullptr;           // [B, H, d + 1, d], updated
  int64_t kv_stride = 0;               // elements from one sequence to the next
  RowMatrix history;                   // [B, (K - 1) D] of dtype: K - 1 rows, oldest first; updated
  int64_t* position = nullptr;         // [B], updated
  int64_t position_stride = 0;
  RowMatrix y;  // [B, D] of dtype

  int width() const { return num_heads * head_dim; }
};

cudaError_t gated_rela_step(const GatedRelaStepParams& params, cudaStream_t stream);

}  // namespace recgrela::cuda
