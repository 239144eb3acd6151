// Parameters and entry points of mlp: T rows of I features, a hidden layer of F and an output of O features.
#pragma once

#include "kernels/common/params.h"

namespace recgrela::cuda {

enum class MlpActivation { kNone, kRelu, kSilu, kGelu };

struct MlpParams {
  // I and O are multiples of kUnit, up to the maximum of the rows' type; F is any number.
  static constexpr int kUnit = 16, kMaxWidth = 256, kMaxFloat32Width = 128;
  static constexpr int64_t kMaxRows = (int64_t{1} << 31) - (1 << 20);

  DType dtype = DType::kFloat32;
  MlpActivation activation = MlpActivation::kNone;
  int64_t num_rows = 0;             // T
  int in = 0, hidden = 0, out = 0;  // I, F, O
  int max_shared_bytes = 0;         // of a block; 0: as many as the device has
  Dropout dropout1, dropout2;       // of the hidden layer and of the output

  // Rows of dtype, aligned to 16 bytes.
  RowMatrix x;  // [T, I]
  RowMatrix y;  // [T, O]; forward only

  // Dense float32, aligned to 16 bytes.
  const float *w1 = nullptr, *b1 = nullptr;  // [F, I], [F]
  const float *w2 = nullptr, *b2 = nullptr;  // [O, F], [O]

  // Backward only.
  RowMatrix d_y, d_x;
  float *d_w1 = nullptr, *d_b1 = nullptr, *d_w2 = nullptr, *d_b2 = nullptr;
  void* workspace = nullptr;  // of the size that the function below returns, aligned to 256 bytes
};

size_t mlp_backward_workspace(const MlpParams& params);
cudaError_t mlp_forward(const MlpParams& params, cudaStream_t stream);
cudaError_t mlp_backward(const MlpParams& params, cudaStream_t stream);

}  // namespace recgrela::cuda
