// Parameters and entry points of linear_scan: h_i = a_i h_{i-1} + x_i in C channels of B sequences, T rows in total.
#pragma once

#include "kernels/common/params.h"

namespace recgrela::cuda {

// A complex number is a pair of floats, of dtype kFloat32; channels and strides count numbers, real or complex.
struct LinearScanParams {
  DType dtype = DType::kFloat32;
  bool complex = false;
  Sequences sequences;
  int64_t channels = 0;

  RowMatrix x;            // [T, C] of dtype; forward only
  RowMatrix h;            // [T, C] of dtype; the forward writes it, the backward reads it
  bool per_step = false;  // a is [T, C], else [1, C]
  RowMatrix a;            // float32, like its gradient and the states

  const void* initial_state = nullptr;  // [B, C], the state before each sequence; null: zeros
  void* final_state = nullptr;          // [B, C], the state after each sequence; may be null

  // Backward only.
  RowMatrix d_h, d_x, d_a;
  const void* d_final_state = nullptr;  // null: zeros
  void* d_initial_state = nullptr;      // may be null

  int64_t segment_rows = 0;   // rows per segment of a sequence; 0: chosen from the size of the device
  void* workspace = nullptr;  // of the size that the functions below return, aligned to 256 bytes
};

size_t linear_scan_forward_workspace(const LinearScanParams& params);
size_t linear_scan_backward_workspace(const LinearScanParams& params);
cudaError_t linear_scan_forward(const LinearScanParams& params, cudaStream_t stream);
cudaError_t linear_scan_backward(const LinearScanParams& params, cudaStream_t stream);

}  // namespace recgrela::cuda
