// Parameters and entry points of add_norm: T rows of D columns.
#pragma once

#include "kernels/common/params.h"

namespace recgrela::cuda {

struct AddNormParams {
  static constexpr int kMinWidth = 32, kMaxWidth = 256, kWidthStep = 16;
  static constexpr int64_t kMaxRows = int64_t{1} << 30;
  static constexpr int64_t kMaxStride = int64_t{1} << 26;

  DType dtype = DType::kFloat32;  // of z, normed and their gradients; other matrices are float32
  int64_t num_rows = 0;
  int width = 0;  // D
  bool post_norm = false;
  float eps = 0;

  // Rows of every matrix begin at multiples of 16 bytes, or of 8 bytes for 16-bit dtypes.
  RowMatrix x;                        // in the backward of pre-norm, the sum that was normalized
  RowMatrix z;                        // may be absent; in the backward of pre-norm it always is
  const float* weight = nullptr;      // [D], like bias aligned to 16 bytes
  const float* bias = nullptr;        // [D]; forward only
  const int64_t* sequence = nullptr;  // [T], index of DropPath's random number; null: the row's
  Dropout dropout, drop_path;
  RowMatrix residual, normed;  // forward only; residual may be absent

  // Backward only.
  RowMatrix d_residual, d_normed;  // may be absent
  RowMatrix d_x, d_z;              // d_z may be absent
  float *d_weight = nullptr, *d_bias = nullptr;

  void* workspace = nullptr;  // backward only; of the size that the function below returns, aligned to 256 bytes
};

size_t add_norm_backward_workspace(const AddNormParams& params);
cudaError_t add_norm_forward(const AddNormParams& params, cudaStream_t stream);
cudaError_t add_norm_backward(const AddNormParams& params, cudaStream_t stream);

}  // namespace recgrela::cuda
