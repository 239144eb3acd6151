// Parameters and kernels of linear_scan on the CPU.
#pragma once

#include "common.h"

namespace recgrela::cpu {

// Elements are real: a complex number is a pair (re, im) of them.
template <typename T>
struct LinearScanParams {
  Groups groups;
  int64_t width = 0;       // elements in a row
  int64_t item_width = 0;  // elements of a row that an item of work processes
  bool complex = false;

  const int64_t* cu_seqlens = nullptr;
  RowMatrix<const T> a;              // stride 0: the same at every step
  const T* initial_state = nullptr;  // [B, width]; null: zeros

  // forward only
  RowMatrix<const T> x;
  RowMatrix<T> h;
  T* final_state = nullptr;  // [B, width]; null: not computed

  // backward only
  RowMatrix<const T> d_h, saved_h;  // saved_h: h of the forward
  const T* d_final_state = nullptr;
  T* d_initial_state = nullptr;
  RowMatrix<T> d_x;
  RowMatrix<T> d_a;          // absent if a is the same at every step
  T* d_a_partial = nullptr;  // [groups, width], partial sums for such an a; initially zero

  WorkQueue* queue = nullptr;
  // Sets item_width to whole rows if there are enough sequences: threads then share no page of memory.
  void set_item_width() {
    constexpr int64_t kManyGroups = 16, kNarrowWidth = 32;
    item_width = std::max<int64_t>(1, groups.count >= kManyGroups ? width : std::min(width, kNarrowWidth));
  }
  int64_t items_per_group() const { return ceil_div(width, item_width); }
  int64_t num_items() const { return groups.count * items_per_group(); }
};

template <typename T>
using LinearScanKernels = Kernels<T, LinearScanParams<T>>;
template <typename T>
const LinearScanKernels<T>& linear_scan_kernels();

}  // namespace recgrela::cpu
