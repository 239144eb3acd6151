// Parameters and kernels of mlp on the CPU.
#pragma once

#include "activation.h"
#include "common.h"

namespace recgrela::cpu {

template <typename T>
struct MlpParams {
  static constexpr int64_t kBlockRows = 96, kMaxGroups = 16;

  int64_t num_rows = 0, in_features = 0, hidden_features = 0, out_features = 0;
  RowMatrix<const T> x, w1, w2;  // [M, I], [F, I], [O, F]
  const T *b1 = nullptr, *b2 = nullptr;
  Activation activation = Activation::kNone;
  Dropout<T> dropout1, dropout2;

  RowMatrix<T> y;  // forward only

  // backward only
  RowMatrix<const T> d_y;
  RowMatrix<T> d_x;
  // Weight gradients are summed up in groups of rows, whose number depends on num_rows alone.
  int64_t rows_per_group = 0, num_groups = 0;
  T* gradients = nullptr;  // [groups][d_w1, d_w2, d_b1, d_b2], partial sums

  void set_groups() {
    rows_per_group = std::max<int64_t>(2, ceil_div(num_blocks(), kMaxGroups)) * kBlockRows;
    num_groups = std::max<int64_t>(1, ceil_div(num_rows, rows_per_group));
  }

  WorkQueue* queue = nullptr;
  int64_t num_weights() const { return hidden_features * (in_features + 1) + out_features * (hidden_features + 1); }
  int64_t hidden_stride() const { return round_up(hidden_features, 16); }  // elements of a row that dropout counts
  int64_t num_blocks() const { return ceil_div(num_rows, kBlockRows); }
};

template <typename T>
using MlpKernels = Kernels<T, MlpParams<T>>;
template <typename T>
const MlpKernels<T>& mlp_kernels();

}  // namespace recgrela::cpu
