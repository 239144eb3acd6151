// Parameters and entry points of gated_rela_last: one row of each of B sequences, T rows in total, H heads of d
// channels, D = H d.
#pragma once

#include "kernels/common/params.h"

namespace recgrela::cuda {

struct GatedRelaLastParams {
  DType dtype = DType::kFloat32;
  Sequences sequences;
  int num_heads = 0;
  int head_dim = 0;     // 8, 16, 32, 64 or 128
  int kernel_size = 0;  // K; 0: no convolution
  float eps = 0;

  // Rows of all matrices begin at multiples of 16 bytes.
  RowMatrix q, g;                      // [B, D] of dtype; g may be absent
  RowMatrix k, v;                      // [T, D] of dtype
  const int64_t* wanted = nullptr;     // [B], a row of each sequence; not read for an empty one
  const float* rotary = nullptr;       // [P, D / 2, 2] (cos, sin); null: no rotation
  int64_t rotary_positions = 0;        // P
  const float* conv_weight = nullptr;  // [D, K]
  const float* conv_bias = nullptr;    // [D]
  RowMatrix y;                         // [B, D] of dtype; forward only
  // [B, 2, D]: the sum of weights times v over the rows of a sequence, and the sum of phi(k). The forward writes it,
  // the backward reads it.
  float* sums = nullptr;

  // Backward only.
  RowMatrix d_y;                 // [B, D]
  RowMatrix d_q, d_g, d_k, d_v;  // like the operands
  float* d_conv_weight = nullptr;
  float* d_conv_bias = nullptr;

  // Rows per segment of a sequence; a block processes some heads of one segment. 0: chosen from the size of the device.
  int64_t segment_rows = 0;
  void* workspace = nullptr;  // of the size that the functions below return, aligned to 256 bytes
};

size_t gated_rela_last_forward_workspace(const GatedRelaLastParams& params);
size_t gated_rela_last_backward_workspace(const GatedRelaLastParams& params);
cudaError_t gated_rela_last_forward(const GatedRelaLastParams& params, cudaStream_t stream);
cudaError_t gated_rela_last_backward(const GatedRelaLastParams& params, cudaStream_t stream);

}  // namespace recgrela::cuda
