// Parameters and kernels of gated_rela_last on the CPU.
#pragma once

#include "common.h"

namespace recgrela::cpu {

template <typename T>
struct GatedRelaLastParams {
  Groups groups;
  int64_t num_heads = 0;
  int64_t head_dim = 0;     // even
  int64_t kernel_size = 0;  // of the convolution; 0: none
  T eps = 0;

  const int64_t* cu_seqlens = nullptr;  // [B + 1]
  const int64_t* wanted = nullptr;      // [B], a row of each sequence; not read for an empty one
  RowMatrix<const T> q, g;              // [B, D]; g may be absent
  RowMatrix<const T> k, v;              // [T, D]
  const T* rotary = nullptr;            // [P, D / 2, 2] (cos, sin); null: no rotation
  const T* conv_weight = nullptr;       // [D, K]
  const T* conv_bias = nullptr;         // [D]

  RowMatrix<T> y;  // [B, D], forward only
  // [B, 2, D]: the sum of weights times v over the rows of a sequence, and the sum of phi(k). The forward writes it,
  // the backward reads it.
  T* sums = nullptr;

  // backward only
  RowMatrix<const T> d_y;
  RowMatrix<T> d_q, d_k, d_v, d_g;                     // d_g absent if g is
  T *d_conv_weight = nullptr, *d_conv_bias = nullptr;  // [groups, D, K], [groups, D], partial sums

  // An item of work is a group of sequences and some heads: all heads if there are enough groups for every thread.
  int64_t heads_per_item = 1;
  void set_heads_per_item(int64_t num_threads) { heads_per_item = groups.count >= 4 * num_threads ? num_heads : 1; }

  WorkQueue* queue = nullptr;
  int64_t width() const { return num_heads * head_dim; }
  int64_t num_items() const { return groups.count * (num_heads / heads_per_item); }
};

template <typename T>
using GatedRelaLastKernels = Kernels<T, GatedRelaLastParams<T>>;
template <typename T>
const GatedRelaLastKernels<T>& gated_rela_last_kernels();

}  // namespace recgrela::cpu
