// Arguments and entry points of the CUDA kernels: plain pointers and sizes, no torch. Rows are packed: sequence b owns
// the rows cu_seqlens[b] .. cu_seqlens[b + 1]. All pointers are the device's. Nothing here waits for the device.
#pragma once

#include <cstddef>
#include <cstdint>

#ifdef RECGRELA_SIMT_HOST
#include "tests/simt/simt.h"
#else
#include <cuda_runtime.h>
#endif

namespace recgrela::cuda {

enum class DType { kFloat32, kFloat16, kBFloat16 };

// A matrix of rows; null: absent. For gated_rela row starts and the stride are multiples of 16 bytes, and a stride is
// below 2^26, so that a place within 16 rows fits into 32 bits.
struct Rows {
  void* data = nullptr;
  int64_t stride = 0;  // in elements
};

struct Sequences {
  const void* offsets = nullptr;  // [B + 1], int64 if wide, else int32
  bool wide = true;
  int64_t count = 0;     // B
  int64_t num_rows = 0;  // T
  int64_t longest = 0;   // a bound on the length of a sequence; 0: none but T
};

struct GatedRelaParams {
  DType dtype = DType::kFloat32;
  Sequences sequences;
  int num_heads = 0;
  int head_dim = 0;    // 8, 16, 32, 64 or 128
  int conv_width = 0;  // 0 (no convolution) to 4
  bool causal = false;
  float eps = 0;

  Rows q, k, v, g;                    // [T, D] of dtype; g may be absent
  const float* rotary = nullptr;      // [P, D / 2, 2] (cos, sin); null: no rotation
  int64_t rotary_positions = 0;       // P
  const void* conv_weight = nullptr;  // [D, K] of dtype
  const void* conv_bias = nullptr;    // [D] of dtype
  Rows y;                             // forward only

  // The causal form may begin from a state and hand one on. A state is [B, H, d + 1, d] float32: the sums of
  // R phi(k) (x) v, key channels by value channels, then that of phi(k); and [B, K - 1, D] of dtype: the last values,
  // oldest first; and the number of rows before. All three or none.
  const float* initial_state = nullptr;
  const void* initial_values = nullptr;
  const int64_t* initial_count = nullptr;  // [B]
  float* final_state = nullptr;            // may be null
  void* final_values = nullptr;
  int64_t* final_count = nullptr;

  // backward only
  Rows dy;
  Rows dq, dk, dv, dg;                      // dg absent when g is
  void* conv_weight_grad = nullptr;         // [D, K] of dtype
  void* conv_bias_grad = nullptr;           // [D] of dtype
  const float* final_state_grad = nullptr;  // of final_state; null: zero
  const void* final_values_grad = nullptr;  // of final_values; null: zero
  float* initial_state_grad = nullptr;      // may be null
  void* initial_values_grad = nullptr;

  // Rows that a team of threads takes one after the other; longer sequences are cut. 0: chosen by the device's size.
  int64_t segment_rows = 0;
  // Of the backward's workspace, what grows with the teams that run at a time: about, and more where fewer would run
  // than the device can. Others run in launches of their own. 0: 128 MiB.
  int64_t room_bytes = 0;
  void* workspace = nullptr;  // as many bytes as the functions below say, aligned to 256
};

size_t gated_rela_forward_workspace(const GatedRelaParams& params);
size_t gated_rela_backward_workspace(const GatedRelaParams& params);
cudaError_t gated_rela_forward(const GatedRelaParams& params, cudaStream_t stream);
cudaError_t gated_rela_backward(const GatedRelaParams& params, cudaStream_t stream);

struct CausalConv1dParams {
  DType dtype = DType::kFloat32;
  Sequences sequences;
  int64_t channels = 0;
  int width = 0;  // 1 to 4
  bool silu = false;

  Rows x;                        // [T, C]
  const void* weight = nullptr;  // [C, K] of dtype
  const void* bias = nullptr;    // [C] or null
  Rows y;                        // forward only

  // The last K - 1 rows before each sequence, oldest first, [B, K - 1, C] of dtype; null: zeros.
  const void* initial_values = nullptr;
  void* final_values = nullptr;  // those after it; may be null

  // backward only
  Rows dy, dx;
  void* weight_grad = nullptr;
  void* bias_grad = nullptr;                // null when bias is
  const void* final_values_grad = nullptr;  // null: zero
  void* initial_values_grad = nullptr;      // may be null

  void* workspace = nullptr;
};

size_t causal_conv1d_backward_workspace(const CausalConv1dParams& params);
cudaError_t causal_conv1d_forward(const CausalConv1dParams& params, cudaStream_t stream);
cudaError_t causal_conv1d_backward(const CausalConv1dParams& params, cudaStream_t stream);

// h_i = a_i h_{i-1} + x_i in each channel. Complex numbers are pairs of floats, of dtype float32.
struct LinearScanParams {
  DType dtype = DType::kFloat32;
  bool complex = false;
  Sequences sequences;
  int64_t channels = 0;  // strides and channels count complex numbers where those are

  Rows x, h;              // [T, C]; h is the forward's output, and what the backward reads in the place of x
  bool per_step = false;  // a is [T, C], else one row
  Rows a;                 // float32, as the states and the gradient of a
  const void* initial_state = nullptr;  // [B, C] before each sequence; null: zeros
  void* final_state = nullptr;          // behind it; may be null

  // backward only
  Rows dh, dx, da;
  const void* final_state_grad = nullptr;  // null: zero
  void* initial_state_grad = nullptr;      // may be null

  int64_t segment_rows = 0;  // that a thread takes one after the other; 0: chosen by the device's size
  void* workspace = nullptr;
};

size_t linear_scan_forward_workspace(const LinearScanParams& params);
size_t linear_scan_backward_workspace(const LinearScanParams& params);
cudaError_t linear_scan_forward(const LinearScanParams& params, cudaStream_t stream);
cudaError_t linear_scan_backward(const LinearScanParams& params, cudaStream_t stream);

// y_i = (sum_n C_i[n] h_i[n] + D u_i) SiLU(z_i) of h_i[n] = exp(d_i A[n]) h_{i-1}[n] + d_i B_i[n] u_i in each channel,
// where d_i = softplus(delta_i + delta_bias).
struct SelectiveScanParams {
  static constexpr int kMostStates = 256;
  static constexpr int kKeptRows = 32;

  DType dtype = DType::kFloat32;
  Sequences sequences;
  int64_t channels = 0;
  int states = 0;  // N, of a channel; 1 to kMostStates
  bool delta_softplus = true;

  Rows u, delta, z;                   // [T, C] of dtype; z may be absent
  Rows B, C;                          // [T, N] of dtype
  const float* A = nullptr;           // [C, N]
  const float* D = nullptr;           // [C]; may be null
  const float* delta_bias = nullptr;  // [C]; may be null
  Rows y;                             // forward only

  const float* initial_state = nullptr;  // [B, C, N] before each sequence; null: zeros
  float* final_state = nullptr;          // behind it; may be null
  // The states before row 32 j of sequence b are number cu_seqlens[b] / 32 + b + j of [T / 32 + B, C, N]. The forward
  // leaves them unless it is null, the backward reads them.
  float* kept = nullptr;

  // backward only
  Rows dy, du, ddelta, dz, dB, dC;          // dz absent when z is
  float* dA = nullptr;                      // [C, N]
  float* dD = nullptr;                      // [C]; null when D is
  float* ddelta_bias = nullptr;             // [C]; null when delta_bias is
  const float* final_state_grad = nullptr;  // null: zero
  float* initial_state_grad = nullptr;      // may be null

  int64_t segment_rows =
      0;  // that a block takes one after the other, in multiples of 32; 0: chosen by the device's size
  void* workspace = nullptr;
};

size_t selective_scan_forward_workspace(const SelectiveScanParams& params);
size_t selective_scan_backward_workspace(const SelectiveScanParams& params);
cudaError_t selective_scan_forward(const SelectiveScanParams& params, cudaStream_t stream);
cudaError_t selective_scan_backward(const SelectiveScanParams& params, cudaStream_t stream);

}  // namespace recgrela::cuda
