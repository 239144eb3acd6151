// Parameters and entry points of embedding: T rows of a table of n_items rows of width D, float32.
#pragma once

#include "kernels/common/params.h"

namespace recgrela::cuda {

struct EmbeddingParams {
  static constexpr int kMinWidth = 16, kMaxWidth = 256;  // D is a multiple of kMinWidth
  static constexpr int64_t kMaxRows = int64_t{1} << 30;

  int64_t num_rows = 0;  // T, at most kMaxRows
  int64_t n_items = 0;   // 1 to 2^31 - 1
  int width = 0;         // D
  float eps = 0.f;
  Dropout dropout;           // index of an element: row * D + column
  int64_t padding_idx = -1;  // row of d_table that stays zero; -1: none

  const int64_t* items = nullptr;  // [T]
  const float* table = nullptr;    // [n_items, D]
  const float* weight = nullptr;   // [D]; null: no LayerNorm
  const float* bias = nullptr;     // [D]; may be null
  float* y = nullptr;              // [T, D]; forward only

  // Backward only.
  RowMatrix d_y;             // [T, D]
  float* d_table = nullptr;  // [n_items, D]
  float* d_weight = nullptr;
  float* d_bias = nullptr;  // may be null

  void* workspace = nullptr;  // backward only; of the size that the function below returns, aligned to 256 bytes

  // Sizes of the backward's parts; 0: chosen from the sizes and the device.
  int piece = 0;       // sorted rows that one team adds
  int sort_chunk = 0;  // rows that one warp sorts; a multiple of 32, below 2^13
  int digit_bits = 0;  // bits of an item that one pass of the sort handles, at most 12
};

size_t embedding_backward_workspace(const EmbeddingParams& params);
// Fails with a device-side assertion if an item is not a row of the table.
cudaError_t embedding_forward(const EmbeddingParams& params, cudaStream_t stream);
// Expects that the forward has checked the items; it clamps them.
cudaError_t embedding_backward(const EmbeddingParams& params, cudaStream_t stream);

}  // namespace recgrela::cuda
