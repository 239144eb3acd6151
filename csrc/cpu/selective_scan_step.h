// Parameters and kernels of selective_scan_step on the CPU.
#pragma once

#include "common.h"

namespace recgrela::cpu {

template <typename T>
struct SelectiveScanStepParams {
  Groups groups;
  int64_t channels = 0, num_states = 0;
  bool softplus = false;

  RowMatrix<const T> u, delta, z;               // [B, C]; z may be absent
  RowMatrix<const T> B, C;                      // [B, N]
  const T* A = nullptr;                         // [C, N]
  const T *D = nullptr, *delta_bias = nullptr;  // [C]; null: none
  RowMatrix<T> state;                           // [B, C N]; updated
  RowMatrix<T> y;                               // [B, C]

  WorkQueue* queue = nullptr;
  int64_t num_items() const { return groups.count; }
};

template <typename T>
using SelectiveScanStepKernels = Kernels<T, SelectiveScanStepParams<T>>;
template <typename T>
const SelectiveScanStepKernels<T>& selective_scan_step_kernels();

}  // namespace recgrela::cpu
