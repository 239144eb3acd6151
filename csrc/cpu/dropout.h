// Parameters and kernels of dropout on the CPU.
#pragma once

#include "activation.h"
#include "common.h"

namespace recgrela::cpu {

template <typename T>
struct DropoutParams {
  static constexpr int64_t kItemElements = 8192;

  Dropout<T> dropout;
  int64_t numel = 0;  // <= 2^32
  const T* x = nullptr;
  T* y = nullptr;

  WorkQueue* queue = nullptr;
  int64_t num_items() const { return ceil_div(numel, kItemElements); }
};

template <typename T>
using DropoutKernels = Kernels<T, DropoutParams<T>>;
template <typename T>
const DropoutKernels<T>& dropout_kernels();

}  // namespace recgrela::cpu
