// Parameters and entry points of linear_cross_entropy: T rows of width D, N items.
#pragma once

#include "kernels/common/params.h"

namespace recgrela::cuda {

struct LinearCrossEntropyParams {
  // Widths are multiples of kMinWidth / 2 from kMinWidth to kMaxWidth.
  static constexpr int kMinWidth = 32, kMaxWidth = 256;

  DType dtype = DType::kFloat32;  // of products and, unless float32_hidden, of hidden; everything else is float32
  bool float32_hidden = false;    // hidden is float32, and rounded to dtype
  int64_t num_rows = 0;           // T, 1 to about 2^31
  int64_t num_items = 0;          // N, 1 to about 2^31
  int dim = 0;                    // D
  float label_smoothing = 0.f;

  RowMatrix hidden;                 // [T, D], rows aligned to 16 bytes
  RowMatrix weight;                 // [N, D], rows aligned to 16 bytes
  const float* bias = nullptr;      // [N]; may be null
  const int64_t* target = nullptr;  // [T], each in 0 .. N - 1

  float* loss = nullptr;      // [1]
  void* d_hidden = nullptr;   // [T, D], of hidden_gradient(); gradients may be null
  float* d_weight = nullptr;  // [N, D]
  float* d_bias = nullptr;    // [N]

  void* workspace = nullptr;  // of the size that the function below returns, aligned to 256 bytes

  // Not float16, whose range is too small before the backward multiplies d_hidden by d_loss.
  __host__ __device__ DType hidden_gradient() const {
    return dtype == DType::kBFloat16 && !float32_hidden ? DType::kBFloat16 : DType::kFloat32;
  }
};

size_t linear_cross_entropy_workspace(const LinearCrossEntropyParams& params);
cudaError_t linear_cross_entropy_forward(const LinearCrossEntropyParams& params, cudaStream_t stream);

// Multiplies gradients by d_loss. Results have the shapes and dtypes of the operands.
struct LinearCrossEntropyScaleParams {
  static constexpr int kNumGradients = 3;
  struct Gradient {
    const void* from = nullptr;  // contiguous, aligned to 16 bytes
    void* to = nullptr;
    int64_t size = 0;  // elements
  };

  DType dtype = DType::kFloat32;  // of the first gradient; the others are float32
  const float* d_loss = nullptr;  // [1]
  Gradient gradients[kNumGradients];
};
cudaError_t linear_cross_entropy_backward(const LinearCrossEntropyScaleParams& params, cudaStream_t stream);

}  // namespace recgrela::cuda
