// Parameters and kernels of add_norm on the CPU: T rows of D columns, all of one dtype.
#pragma once

#include "activation.h"
#include "common.h"

namespace recgrela::cpu {

template <typename T>
struct AddNormParams {
  int64_t num_rows = 0, width = 0;  // T, D
  bool post_norm = false;
  T eps = 0;

  RowMatrix<const T> x, z;  // z may be absent; in the backward of pre-norm x is the sum, and z is absent
  const T *weight = nullptr, *bias = nullptr;
  const int64_t* sequence = nullptr;  // [T], index of DropPath's random number; null: the row's
  Dropout<T> dropout, drop_path;
  RowMatrix<T> residual, normed;  // forward only; residual is absent unless it is the sum

  // Backward only. The groups of rows have their own sums of d_weight and d_bias, [groups, D].
  RowMatrix<const T> d_residual, d_normed;  // may be absent
  RowMatrix<T> d_x, d_z;                    // d_z may be absent
  T *d_weight = nullptr, *d_bias = nullptr;

  WorkQueue* queue = nullptr;

  static constexpr int64_t kBlockRows = 64;
  Groups groups() const { return Groups::of(ceil_div(num_rows, kBlockRows), 2 * width); }
  int64_t num_items() const { return groups().count; }
};

template <typename T>
using AddNormKernels = Kernels<T, AddNormParams<T>>;
template <typename T>
const AddNormKernels<T>& add_norm_kernels();

}  // namespace recgrela::cpu
