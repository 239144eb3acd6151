// Types that the CPU kernels share: plain pointers and sizes, no torch. Sequences are packed: sequence b is the rows
// [cu_seqlens[b], cu_seqlens[b + 1]) of a matrix.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace recgrela::cpu {

constexpr int64_t ceil_div(int64_t n, int64_t divisor) { return (n + divisor - 1) / divisor; }
constexpr int64_t round_up(int64_t n, int64_t unit) { return ceil_div(n, unit) * unit; }

// A matrix whose rows are contiguous; null data: absent.
template <typename T>
struct RowMatrix {
  T* data = nullptr;
  int64_t stride = 0;  // elements between rows
  T* row(int64_t i) const { return data + i * stride; }
};

// Groups of sequences, each with its own row of partial weight gradients. The grouping, and with it the order of every
// sum, depends on the batch alone and not on the number of threads.
struct Groups {
  int64_t num_sequences = 0;
  int64_t sequences_per_group = 1;
  int64_t count = 0;

  // num_weights: elements of the gradient that each group accumulates separately
  static Groups of(int64_t num_sequences, int64_t num_weights) {
    constexpr int64_t kMaxGroups = 1024, kMaxElements = int64_t{1} << 24;
    const int64_t max_groups =
        std::max<int64_t>(1, std::min(kMaxGroups, kMaxElements / std::max<int64_t>(1, num_weights)));
    Groups g;
    g.num_sequences = num_sequences;
    g.sequences_per_group = std::max<int64_t>(1, ceil_div(num_sequences, max_groups));
    g.count = ceil_div(num_sequences, g.sequences_per_group);
    return g;
  }
  int64_t begin(int64_t group) const { return group * sequences_per_group; }
  int64_t end(int64_t group) const { return std::min((group + 1) * sequences_per_group, num_sequences); }
};

// Hands out the items of work 0 .. num_items - 1 of a call to its threads.
class WorkQueue {
 public:
  explicit WorkQueue(int64_t num_items) : num_items_(num_items) {}
  // Takes the next item; false if none remains.
  bool take(int64_t& item) { return (item = next_.fetch_add(1)) < num_items_; }

 private:
  std::atomic<int64_t> next_{0};
  const int64_t num_items_;
};

// The kernels of an op for one instruction set. A kernel processes items from params.queue until none remains; several
// threads run it at once, each with its own scratch memory of scratch(params, backward) elements.
template <typename T, typename Params>
struct Kernels {
  int64_t (*scratch)(const Params&, bool backward);
  void (*forward)(const Params&, T* scratch);
  void (*backward)(const Params&, T* scratch);
};

template <typename Params>
int64_t no_scratch(const Params&, bool) {
  return 0;
}

}  // namespace recgrela::cpu
