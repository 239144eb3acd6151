// Parameters and entry points of linear: T rows of width I, and one or two layers that read them. The layers' outputs
// are numbered as if they were one layer with N outputs.
#pragma once

#include "kernels/common/params.h"

namespace recgrela::cuda {

struct LinearLayer {
  int64_t outputs = 0;            // a multiple of 16; 0: no second layer
  const float* weight = nullptr;  // [outputs, I], aligned to 16 bytes
  const float* bias = nullptr;    // [outputs]; may be null
  RowMatrix y;                    // [T, outputs] of dtype; forward only

  // Backward only.
  RowMatrix d_y;
  float* d_weight = nullptr;
  float* d_bias = nullptr;  // null if bias is
};

struct LinearParams {
  static constexpr int kMaxWidth = 512;  // of I and of the sum of outputs
  static constexpr int64_t kMaxRows = int64_t{1} << 30;

  DType dtype = DType::kFloat32;
  int64_t num_rows = 0;  // T
  int64_t width = 0;     // I, a multiple of 16
  RowMatrix x;           // [T, I] of dtype; all rows are aligned to 16 bytes and less than 2^26 elements apart
  LinearLayer layers[2];
  RowMatrix d_x;       // backward only; null if not wanted
  RowMatrix d_passed;  // backward only, [T, I] of dtype: rows that are added to d_x; may be null

  int max_shared_bytes = 0;  // of a block; 0: as many as the device has

  void* workspace = nullptr;  // backward only; of the size that the function below returns, aligned to 256 bytes
};

size_t linear_backward_workspace(const LinearParams& params);
cudaError_t linear_forward(const LinearParams& params, cudaStream_t stream);
cudaError_t linear_backward(const LinearParams& params, cudaStream_t stream);

}  // namespace recgrela::cuda
