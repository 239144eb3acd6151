// Parameters and entry points of selective_scan, on C channels of B sequences, T rows in total:
//   h_i[n] = exp(d_i A[n]) h_{i-1}[n] + d_i B_i[n] u_i      where d_i = softplus(delta_i + delta_bias)
//   y_i    = (sum_n C_i[n] h_i[n] + D u_i) SiLU(z_i)
#pragma once

#include "kernels/common/params.h"

namespace recgrela::cuda {

struct SelectiveScanParams {
  static constexpr int kMaxStates = 256;
  static constexpr int kCheckpointRows = 16;  // rows from one checkpoint to the next

  DType dtype = DType::kFloat32;
  Sequences sequences;
  int64_t channels = 0;
  int num_states = 0;  // N, per channel; 1 to kMaxStates
  bool delta_softplus = true;

  RowMatrix u, delta, z;              // [T, C] of dtype; z may be absent
  RowMatrix B, C;                     // [T, N] of dtype
  const float* A = nullptr;           // [C, N]
  const float* D = nullptr;           // [C]; may be null
  const float* delta_bias = nullptr;  // [C]; may be null
  RowMatrix y;                        // [T, C] of dtype; forward only

  const float* initial_state = nullptr;  // [B, C, N], the state before each sequence; null: zeros
  float* final_state = nullptr;          // [B, C, N], the state after each sequence; may be null
  // States before every 16th row, [T / 16 + B, C, N]: the state before row 16 j of sequence b has the index
  // cu_seqlens[b] / 16 + b + j. The forward writes them unless the pointer is null; the backward reads them.
  float* checkpoints = nullptr;

  // Backward only. Gradients of absent inputs are absent.
  RowMatrix d_y, d_u, d_delta, d_z, d_B, d_C;
  float* d_A = nullptr;
  float* d_D = nullptr;
  float* d_delta_bias = nullptr;
  const float* d_final_state = nullptr;  // null: zeros
  float* d_initial_state = nullptr;      // may be null

  // Rows per segment of a sequence, rounded up to a multiple of 16; a block processes one segment of some channels. 0:
  // chosen from the size of the device.
  int64_t segment_rows = 0;
  void* workspace = nullptr;  // of the size that the functions below return, aligned to 256 bytes
};

size_t selective_scan_forward_workspace(const SelectiveScanParams& params);
size_t selective_scan_backward_workspace(const SelectiveScanParams& params);
cudaError_t selective_scan_forward(const SelectiveScanParams& params, cudaStream_t stream);
cudaError_t selective_scan_backward(const SelectiveScanParams& params, cudaStream_t stream);

}  // namespace recgrela::cuda
