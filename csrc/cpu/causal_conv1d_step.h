// Parameters and kernels of causal_conv1d_step on the CPU.
#pragma once

#include "common.h"

namespace recgrela::cpu {

template <typename T>
struct CausalConv1dStepParams {
  Groups groups;
  int64_t channels = 0;
  int64_t kernel_size = 0;
  bool silu = false;

  RowMatrix<const T> x;       // [B, C]
  const T* weight = nullptr;  // [C, K]
  const T* bias = nullptr;    // [C]; null: none
  RowMatrix<T> history;       // [B, (K - 1) C]: K - 1 rows, oldest first; updated
  RowMatrix<T> y;             // [B, C]

  WorkQueue* queue = nullptr;
  int64_t num_items() const { return groups.count; }
};

template <typename T>
using CausalConv1dStepKernels = Kernels<T, CausalConv1dStepParams<T>>;
template <typename T>
const CausalConv1dStepKernels<T>& causal_conv1d_step_kernels();

}  // namespace recgrela::cpu
