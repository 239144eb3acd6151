// Parameters and kernels of linear_cross_entropy on the CPU.
#pragma once

#include "common.h"

namespace recgrela::cpu {

// One block of scores: the rows first_row .. first_row + num_rows by the items first_item .. first_item + num_items.
template <typename T>
struct LinearCrossEntropyParams {
  static constexpr int64_t kBlockRows = 48;  // a multiple of every instruction set's tile
  static constexpr int64_t kChunkItems = 256;

  int64_t dim = 0;
  RowMatrix<const T> hidden, weight;  // [T, D], [n_items, D]
  const int64_t* target = nullptr;    // [T]
  const T* bias = nullptr;            // [n_items], may be absent
  T scale = 0;                        // factor of the gradients
  T target_probability = 1;           // 1 - label_smoothing
  RowMatrix<T> d_hidden, d_weight;    // may be absent
  T* d_bias = nullptr;                // likewise

  // Label smoothing adds a constant to every row of a gradient: its rows begin as these vectors.
  const T *d_hidden_start = nullptr, *d_weight_start = nullptr;  // [D]
  T d_bias_start = 0;

  // [T]: the maximum score, the sum of exp(score - maximum) over the items so far, and the target's score
  T *max_score = nullptr, *sum = nullptr, *target_score = nullptr;

  int64_t first_row = 0, num_rows = 0, first_item = 0, num_items = 0;
  bool reduce = false;          // compute max_score, sum and target_score
  bool make_gradients = false;  // from max_score and sum over all items

  // Workspace of the block. `lanes` and `panel_width` depend on the instruction set.
  int64_t lanes = 0, panel_width = 0;
  int64_t chunk_panels = 0;                            // panels of kChunkItems items
  T* scores = nullptr;                                 // [panels, padded_rows, panel_width]
  T* weight_panels = nullptr;                          // [panels, D, panel_width]
  T* weight_rows = nullptr;                            // [panels * panel_width, padded_dim]
  T* bias_panels = nullptr;                            // [panels, panel_width]
  T* scaled = nullptr;                                 // [num_rows, padded_dim]
  T *chunk_max_score = nullptr, *chunk_sum = nullptr;  // [chunks, padded_rows]

  int64_t padded_dim() const { return round_up(dim, lanes); }
  int64_t row_blocks() const { return ceil_div(num_rows, kBlockRows); }
  int64_t padded_rows() const { return row_blocks() * kBlockRows; }
  int64_t panels() const { return ceil_div(num_items, panel_width); }
  int64_t chunks() const { return ceil_div(panels(), chunk_panels); }

  WorkQueue* queue = nullptr;
};

template <typename T>
struct LinearCrossEntropyKernels {
  using Params = LinearCrossEntropyParams<T>;
  using Phase = void (*)(const Params&, T* scratch);
  int64_t lanes, panel_width;
  int64_t (*scratch)(const Params&);
  Phase pack, score, exponentiate, finish, gradients;
};
template <typename T>
const LinearCrossEntropyKernels<T>& linear_cross_entropy_kernels();

}  // namespace recgrela::cpu
