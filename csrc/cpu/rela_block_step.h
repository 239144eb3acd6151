// Parameters and kernels of rela_block_step on the CPU.
#pragma once

#include "activation.h"
#include "add_norm.h"
#include "gated_rela_step.h"

namespace recgrela::cpu {

// A linear layer; without a weight, it is absent.
template <typename T>
struct StepLayer {
  RowMatrix<const T> weight;  // [out, in]
  const T* bias = nullptr;
};

template <typename T>
struct RelaBlockStepParams {
  static constexpr int64_t kBlockRows = 8;

  GatedRelaStepParams<T> rela;  // q, k, v, g and y are in scratch memory
  int64_t num_rows = 0, hidden_features = 0;
  T norm_eps = 0;
  Activation activation = Activation::kNone;

  RowMatrix<const T> x;                                    // [B, D]
  StepLayer<T> in, gate, qk, out, up, down;                // D -> D, D, 2 D; D -> D; D -> F -> D
  const T *norm1_weight = nullptr, *norm1_bias = nullptr;  // [D]
  const T *norm2_weight = nullptr, *norm2_bias = nullptr;  // [D]
  RowMatrix<T> y;                                          // [B, D]

  WorkQueue* queue = nullptr;
  int64_t width() const { return rela.width(); }
  int64_t num_items() const { return ceil_div(num_rows, kBlockRows); }
};

template <typename T>
using RelaBlockStepKernels = Kernels<T, RelaBlockStepParams<T>>;
template <typename T>
const RelaBlockStepKernels<T>& rela_block_step_kernels();

}  // namespace recgrela::cpu
