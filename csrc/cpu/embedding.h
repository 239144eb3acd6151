// Parameters and kernels of embedding on the CPU.
#pragma once

#include "activation.h"
#include "common.h"

namespace recgrela::cpu {

template <typename T>
struct EmbeddingParams {
  int64_t num_rows = 0, width = 0;
  int64_t chunk_rows = 1;  // rows that a thread takes at a time
  int64_t padding_idx = -1;
  T eps = 0;
  Dropout<T> dropout;  // index of an element: row * width + column

  const int64_t* items = nullptr;  // [num_rows], rows of the table
  const T* table = nullptr;
  const T *weight = nullptr, *bias = nullptr;  // [width]; null: no LayerNorm, no summand
  T* y = nullptr;                              // [num_rows, width]; forward only

  // Backward only.
  // [num_rows], the rows sorted by item, and their items
  const int64_t *order = nullptr, *sorted_items = nullptr;
  RowMatrix<const T> d_y;
  T* d_table = nullptr;  // zeros before
  // One row for each chunk of the sorted rows: the sum over the chunk's first item if earlier chunks have rows of that
  // item, which is not in d_table, and sums for d_weight and d_bias, zeros before.
  T *first_sums = nullptr, *d_weight = nullptr, *d_bias = nullptr;

  WorkQueue* queue = nullptr;
  int64_t num_chunks() const { return ceil_div(num_rows, chunk_rows); }
  // Whether the item of sorted row i has earlier rows.
  bool continues(int64_t i) const { return i > 0 && sorted_items[i - 1] == sorted_items[i]; }
};

template <typename T>
using EmbeddingKernels = Kernels<T, EmbeddingParams<T>>;
template <typename T>
const EmbeddingKernels<T>& embedding_kernels();

}  // namespace recgrela::cpu
