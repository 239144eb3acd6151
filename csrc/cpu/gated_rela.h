// Parameters and kernels of gated_rela on the CPU.
#pragma once

#include "common.h"

namespace recgrela::cpu {

template <typename T>
struct GatedRelaParams {
  Groups groups;
  int64_t max_seqlen = 0;
  int64_t num_heads = 0;
  int64_t head_dim = 0;     // even
  int64_t kernel_size = 0;  // of the convolution; 0: none
  bool causal = false;
  T eps = 0;

  const int64_t* cu_seqlens = nullptr;  // [B + 1]
  RowMatrix<const T> q, k, v, g;        // [T, D]; g may be absent
  const T* rotary = nullptr;            // [P, D / 2, 2] (cos, sin), P >= max_seqlen; null: no rotation
  const T* conv_weight = nullptr;       // [D, K]
  const T* conv_bias = nullptr;         // [D]

  // State before each sequence, causal form only; null: zeros.
  const T* initial_kv_state = nullptr;        // [B, H, d + 1, d]: sum of R phi(k) (x) v; last row: sum of phi(k)
  const T* initial_history = nullptr;         // [B, K - 1, D]: the last rows of v, oldest first
  const int64_t* initial_position = nullptr;  // [B]: number of earlier rows

  // forward only
  RowMatrix<T> y;
  T *final_kv_state = nullptr, *final_history = nullptr;  // state after each sequence; null: not computed
  int64_t* final_position = nullptr;

  // backward only
  RowMatrix<const T> d_y;
  RowMatrix<T> d_q, d_k, d_v, d_g;                                  // d_g absent if g is
  const T *d_final_kv_state = nullptr, *d_final_history = nullptr;  // null: zeros
  T *d_initial_kv_state = nullptr, *d_initial_history = nullptr;    // null: not computed
  T *d_conv_weight = nullptr, *d_conv_bias = nullptr;               // [groups, D, K], [groups, D], partial sums

  // An item of work is a group of sequences and some heads: all heads if there are enough groups for every thread,
  // since the heads of a row share its cache lines.
  int64_t heads_per_item = 1;
  void set_heads_per_item(int64_t num_threads) { heads_per_item = groups.count >= 4 * num_threads ? num_heads : 1; }

  WorkQueue* queue = nullptr;
  int64_t num_items() const { return groups.count * (num_heads / heads_per_item); }
};

template <typename T>
using GatedRelaKernels = Kernels<T, GatedRelaParams<T>>;
template <typename T>
const GatedRelaKernels<T>& gated_rela_kernels();

}  // namespace recgrela::cpu
