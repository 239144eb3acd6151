// Parameters and entry points of mlp: T rows of I features, a hidden layer of F and an output of O features; and of
// mlp_block, which normalizes the rows before and adds the residual stream behind.
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

// Parameters of mlp_block beside those of mlp, for T rows of D features.
struct MlpNorm {
  float eps = 0;
  const float *norm_weight = nullptr, *norm_bias = nullptr;  // [D], aligned to 16 bytes
  Dropout drop_path;                                         // of the branch
  const int64_t* sequence = nullptr;                         // [T], index of DropPath's random number; null: the row's

  // Rows, aligned to 16 bytes. Forward only: the branch, of dtype, and its float32 sum with x; both may be absent.
  RowMatrix branch, sum;
  // Backward only.
  RowMatrix d_branch;  // of dtype; may be absent
  float *d_norm_weight = nullptr, *d_norm_bias = nullptr;
};

// x, y, d_y and d_x are float32 for any dtype, and I = O = D. In the backward, x is the sum that was normalized.
struct MlpBlockParams : MlpParams, MlpNorm {
  static constexpr int kMinBlockWidth = 32, kMaxBlockWidth = 64;
};

size_t mlp_backward_workspace(const MlpParams& params);
cudaError_t mlp_forward(const MlpParams& params, cudaStream_t stream);
cudaError_t mlp_backward(const MlpParams& params, cudaStream_t stream);

// The backward of wide hidden layers, and on devices with little shared memory, is cudaErrorInvalidValue.
size_t mlp_block_backward_workspace(const MlpBlockParams& params);
cudaError_t mlp_block_forward(const MlpBlockParams& params, cudaStream_t stream);
cudaError_t mlp_block_backward(const MlpBlockParams& params, cudaStream_t stream);

}  // namespace recgrela::cuda
