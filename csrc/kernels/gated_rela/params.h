// Parameters and entry points of gated_rela: B sequences, T rows in total, H heads of d channels, D = H d.
#pragma once

#include "kernels/common/params.h"

namespace recgrela::cuda {

struct GatedRelaParams {
  static constexpr int kMaxKernelSize = 4;

  DType dtype = DType::kFloat32;
  Sequences sequences;
  int num_heads = 0;
  int head_dim = 0;     // 8, 16, 32, 64 or 128
  int kernel_size = 0;  // K, up to kMaxKernelSize; 0: no convolution
  bool causal = false;
  float eps = 0;

  // Rows of q, k, v, g, y and their gradients begin at multiples of 16 bytes. Strides are below 2^26 elements, so that
  // 32 bits hold an offset within 16 rows.
  RowMatrix q, k, v, g;                // [T, D] of dtype; g may be absent
  const float* rotary = nullptr;       // [P, D / 2, 2] (cos, sin); null: no rotation
  int64_t rotary_positions = 0;        // P
  const float* conv_weight = nullptr;  // [D, K]
  const float* conv_bias = nullptr;    // [D]
  RowMatrix y;                         // [T, D] of dtype; forward only

  // State of the causal form before and after each sequence. Either all three members are null or none is. The
  // bidirectional form has only final_kv_state, the sums over a whole sequence.
  //   kv_state  [B, H, d + 1, d] float32: sum of R phi(k) (x) v, keys by values, and in the last row the sum of phi(k)
  //   history   [B, K - 1, D] of dtype: the last rows of v, oldest first
  //   position  [B]: the number of earlier rows
  const float* initial_kv_state = nullptr;
  const void* initial_history = nullptr;
  const int64_t* initial_position = nullptr;
  float* final_kv_state = nullptr;
  void* final_history = nullptr;
  int64_t* final_position = nullptr;

  const float* saved_kv_state = nullptr;  // backward of the bidirectional form only: final_kv_state; may be null

  // Backward only. Null gradients of the final state are zero; those of the initial state are optional.
  RowMatrix d_y;
  RowMatrix d_q, d_k, d_v, d_g;
  float* d_conv_weight = nullptr;
  float* d_conv_bias = nullptr;
  const float* d_final_kv_state = nullptr;
  const void* d_final_history = nullptr;
  float* d_initial_kv_state = nullptr;
  void* d_initial_history = nullptr;

  // Rows per segment of a sequence; a team of warps processes one segment. 0: chosen from the size of the device.
  int64_t segment_rows = 0;
  void* workspace = nullptr;  // of the size that the functions below return, aligned to 256 bytes
};

size_t gated_rela_forward_workspace(const GatedRelaParams& params);
size_t gated_rela_backward_workspace(const GatedRelaParams& params);
cudaError_t gated_rela_forward(const GatedRelaParams& params, cudaStream_t stream);
cudaError_t gated_rela_backward(const GatedRelaParams& params, cudaStream_t stream);

}  // namespace recgrela::cuda
