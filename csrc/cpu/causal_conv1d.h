// Parameters and kernels of causal_conv1d on the CPU.
#pragma once

#include "common.h"

namespace recgrela::cpu {

template <typename T>
struct CausalConv1dParams {
  Groups groups;
  int64_t channels = 0;
  int64_t kernel_size = 0;
  bool silu = false;

  const int64_t* cu_seqlens = nullptr;
  RowMatrix<const T> x;                // [T, C]
  const T* weight = nullptr;           // [C, K]
  const T* bias = nullptr;             // [C]; null: none
  const T* initial_history = nullptr;  // [B, K - 1, C]: the rows before each sequence, oldest first; null: zeros

  // forward only
  RowMatrix<T> y;
  T* final_history = nullptr;  // [B, K - 1, C]; null: not computed

  // backward only
  RowMatrix<const T> d_y;
  const T* d_final_history = nullptr;  // null: zeros
  RowMatrix<T> d_x;
  T* d_initial_history = nullptr;  // null: not computed
  T* d_weight = nullptr;           // [groups, C, K], partial sums
  T* d_bias = nullptr;             // [groups, C], partial sums; null: not computed

  WorkQueue* queue = nullptr;
  int64_t num_items() const { return groups.count; }
};

template <typename T>
using CausalConv1dKernels = Kernels<T, CausalConv1dParams<T>>;
template <typename T>
const CausalConv1dKernels<T>& causal_conv1d_kernels();

}  // namespace recgrela::cpu
