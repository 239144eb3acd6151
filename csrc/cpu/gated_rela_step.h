// Parameters and kernels of gated_rela_step on the CPU.
#pragma once

#include "common.h"

namespace recgrela::cpu {

template <typename T>
struct GatedRelaStepParams {
  Groups groups;
  int64_t num_heads = 0, head_dim = 0;
  int64_t kernel_size = 0;  // 0: no convolution
  T eps = 0;

  RowMatrix<const T> q, k, v, g;                         // [B, D]; g may be absent
  const int64_t* turns = nullptr;                        // [D / 2]; null: no rotation
  const T *conv_weight = nullptr, *conv_bias = nullptr;  // [D, K], [D]
  RowMatrix<T> kv_state;                                 // [B, H (d + 1) d]; updated
  RowMatrix<T> history;                                  // [B, (K - 1) D]; updated
  RowMatrix<int64_t> position;                           // [B, 1]; updated
  RowMatrix<T> y;                                        // [B, D]

  WorkQueue* queue = nullptr;
  int64_t width() const { return num_heads * head_dim; }
  int64_t num_items() const { return groups.count; }
};

template <typename T>
using GatedRelaStepKernels = Kernels<T, GatedRelaStepParams<T>>;
template <typename T>
const GatedRelaStepKernels<T>& gated_rela_step_kernels();

}  // namespace recgrela::cpu
