// Parameters and kernels of selective_scan on the CPU.
#pragma once

#include "common.h"

namespace recgrela::cpu {

// Rows between checkpoints, the states that the forward saves for the backward. The state before row
// kCheckpointRows * j of sequence b is checkpoint cu_seqlens[b] / kCheckpointRows + b + j; unused checkpoints are zero.
inline constexpr int64_t kCheckpointRows = 32;

template <typename T>
struct SelectiveScanParams {
  Groups groups;
  int64_t num_rows = 0, channels = 0, num_states = 0;
  int64_t item_channels = 0;  // channels that an item of work processes
  bool softplus = false;

  const int64_t* cu_seqlens = nullptr;
  RowMatrix<const T> u, delta, z;               // [T, C]; z may be absent
  RowMatrix<const T> B, C;                      // [T, N]
  const T* A = nullptr;                         // [C, N]
  const T *D = nullptr, *delta_bias = nullptr;  // [C]; null: none
  const T* initial_state = nullptr;             // [B, C, N]; null: zeros

  // forward only
  RowMatrix<T> y;
  T* final_state = nullptr;  // [B, C, N]; null: not computed
  T* checkpoints = nullptr;  // [num_checkpoints, C, N]; null: not saved

  // backward only
  RowMatrix<const T> d_y;
  const T* saved_checkpoints = nullptr;
  const T* d_final_state = nullptr;  // null: zeros
  T* d_initial_state = nullptr;      // null: not computed
  RowMatrix<T> d_u, d_delta, d_z;
  T *d_B = nullptr, *d_C = nullptr;                           // [items_per_group, T, N], partial sums
  T *d_A = nullptr, *d_D = nullptr, *d_delta_bias = nullptr;  // [groups, C, N], [groups, C], partial sums

  // Sets item_channels from the batch alone. Few sequences are divided by channels too, into items that are not too
  // narrow and whose partial sums do not take too much memory.
  void set_item_channels() {
    constexpr int64_t kItems = 64, kNarrow = 32, kAlign = 16, kMaxElements = int64_t{1} << 24;
    const int64_t wanted = ceil_div(kItems, std::max<int64_t>(1, groups.count));
    const int64_t limit = kMaxElements / std::max<int64_t>(1, num_rows * num_states);
    const int64_t items = std::max<int64_t>(1, std::min({wanted, channels / kNarrow, limit}));
    item_channels = std::max<int64_t>(kAlign, round_up(ceil_div(channels, items), kAlign));
  }

  WorkQueue* queue = nullptr;
  int64_t items_per_group() const { return std::max<int64_t>(1, ceil_div(channels, item_channels)); }
  int64_t num_items() const { return groups.count * items_per_group(); }
};

template <typename T>
using SelectiveScanKernels = Kernels<T, SelectiveScanParams<T>>;
template <typename T>
const SelectiveScanKernels<T>& selective_scan_kernels();

}  // namespace recgrela::cpu
