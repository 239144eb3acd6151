// Host side that mlp and mlp_block share: how rows and hidden columns are divided among blocks.
#pragma once

#include <algorithm>

#include "kernels/common/host.cuh"
#include "kernels/mlp/plan.cuh"

namespace recgrela::cuda {

// With more groups of hidden columns, adding their sums of d_x would move more bytes than a kernel of its own.
constexpr int kMaxFusedGroups = 2;

// Stores column i of the partial sums.
struct StoreMlpGradients {
  float *d_w1, *d_w2, *d_b1, *d_b2;
  int64_t in, hidden, out;

  __device__ void operator()(int64_t i, float sum) const {
    const int64_t of_w2 = hidden * in, of_b1 = of_w2 + hidden * out, of_b2 = of_b1 + hidden;
    if (i < of_w2) {
      d_w1[i] = sum;
    } else if (i < of_b1) {
      d_w2[(i - of_w2) % out * hidden + (i - of_w2) / out] = sum;
    } else if (i < of_b2) {
      d_b1[i - of_b1] = sum;
    } else {
      d_b2[i - of_b2] = sum;
    }
  }
};

// Divides rows among the warps and blocks of a kernel by rows, which has one operand in the forward and two in the
// backward.
template <typename K, typename Plan>
void plan_rows(K, Plan& p, int operands) {
  const int panels = K::panels(p.hidden), memory = p.max_shared_bytes;
  const int max_blocks = operands == 1 ? K::kForwardBlocks : K::kRowBlocks;  // of a multiprocessor
  auto bytes = [&](int warps, int panels) {
    Plan other = p;
    other.warps = warps, other.group = panels * K::kPanel;
    return static_cast<int64_t>(K::row_bytes(other, operands));
  };
  p.warps = operands == 1 ? K::kForwardWarps : kMlpMaxWarps;
  while (p.warps > 1 && bytes(p.warps, 1) > memory) p.warps /= 2;
  int group = panels;
  if (bytes(p.warps, panels) > memory) {
    // Two blocks share a multiprocessor: one computes while the other loads weights.
    while (group > 1 && bytes(p.warps, group) > memory / std::min(2, max_blocks)) --group;
    group = static_cast<int>(ceil_div(panels, ceil_div(panels, group)));
  }
  p.group = group * K::kPanel;
  const int64_t resident = std::clamp<int64_t>(memory / bytes(p.warps, group), 1, max_blocks);
  p.blocks = std::min(ceil_div(p.num_rows, int64_t{p.warps} * kTile), resident * multiprocessors());
}

// Divides hidden columns among the warps and blocks of the kernel by columns.
template <typename K, typename Plan>
void plan_columns(K, Plan& p) {
  p.fused = kHasNorm<Plan>;  // mlp_block has no other kernel for d_x
  p.column_warps = 1, p.step_rows = K::kStepRows;
  if (static_cast<int64_t>(K::column_bytes(p)) > p.max_shared_bytes) p.step_rows = K::kFewStepRows;
  p.column_warps = K::kMaxColumnWarps;
  while (p.column_warps > 1 && static_cast<int64_t>(K::column_bytes(p)) > p.max_shared_bytes) --p.column_warps;
  p.column_warps = static_cast<int>(std::min<int64_t>(p.column_warps, ceil_div(p.hidden, kTile)));
  p.column_groups = static_cast<int>(ceil_div(p.hidden, p.column_warps * kTile));
  p.column_warps = static_cast<int>(ceil_div(ceil_div(p.hidden, kTile), p.column_groups));  // groups of equal size
  p.fused = K::kCanFuse && p.column_groups <= kMaxFusedGroups;
  if (static_cast<int64_t>(K::column_bytes(p)) > p.max_shared_bytes) p.fused = false;
  const int64_t resident = std::clamp<int64_t>(p.max_shared_bytes / static_cast<int64_t>(K::column_bytes(p)), 1,
                                               std::max(1, K::kResidentColumnWarps / p.column_warps));
  const int64_t blocks = std::max<int64_t>(1, resident * multiprocessors() / (p.column_groups * K::kDivisions));
  p.row_blocks = static_cast<int>(std::clamp<int64_t>(ceil_div(p.num_rows, p.step_rows), 1, blocks));
}

}  // namespace recgrela::cuda
