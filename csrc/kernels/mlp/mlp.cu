// Host side of mlp: two linear layers, an activation between them and dropout after each, for narrow rows.
//
// The hidden layer never reaches memory. In the forward, a warp processes 16 rows, and the hidden layer is operands in
// its registers. The backward computes it again. A block holds the weights of a group of hidden columns, reads x and
// d_y and computes the gradients of these weights. For rows of up to 64 features and one or two groups it computes d_x
// too, and the groups' sums are added; else another kernel computes d_x. Gradients of weights are partial sums of
// persistent blocks, which are added in a fixed order.
#include <algorithm>

#include "kernels/common/reduce.cuh"
#include "kernels/common/workspace.cuh"
#include "kernels/mlp/plan.cuh"

namespace recgrela::cuda {
namespace {

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
template <typename K>
void plan_rows(K, MlpPlan& p, int operands) {
  const int panels = K::panels(p.hidden), memory = p.max_shared_bytes;
  const int max_blocks = operands == 1 ? K::kForwardBlocks : K::kRowBlocks;  // of a multiprocessor
  auto bytes = [&](int warps, int panels) {
    MlpPlan other = p;
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

template <typename K>
void plan_columns(K, MlpPlan& p) {
  p.fused = false;
  p.column_warps = 1, p.step_rows = K::kStepRows;
  if (static_cast<int64_t>(K::column_bytes(p)) > p.max_shared_bytes) p.step_rows = K::kFewStepRows;
  p.column_warps = K::kMaxColumnWarps;
  while (p.column_warps > 1 && static_cast<int64_t>(K::column_bytes(p)) > p.max_shared_bytes) --p.column_warps;
  p.column_warps = static_cast<int>(std::min<int64_t>(p.column_warps, ceil_div(p.hidden, kTile)));
  p.column_groups = static_cast<int>(ceil_div(p.hidden, p.column_warps * kTile));
  p.fused = K::kCanFuse && p.column_groups <= kMaxFusedGroups;
  if (static_cast<int64_t>(K::column_bytes(p)) > p.max_shared_bytes) p.fused = false;
  const int64_t resident = std::clamp<int64_t>(p.max_shared_bytes / static_cast<int64_t>(K::column_bytes(p)), 1,
                                               std::max(1, K::kResidentColumnWarps / p.column_warps));
  const int64_t blocks = std::max<int64_t>(1, resident * multiprocessors() / (p.column_groups * K::kDivisions));
  p.row_blocks = static_cast<int>(std::clamp<int64_t>(ceil_div(p.num_rows, p.step_rows), 1, blocks));
}

MlpPlan make_plan(const MlpParams& params) {
  MlpPlan p;
  static_cast<MlpParams&>(p) = params;
  if (p.max_shared_bytes == 0) p.max_shared_bytes = max_shared_bytes();
  p.rows = static_cast<int>(p.num_rows);
  p.hidden_stride = static_cast<uint32_t>(ceil_div(p.hidden, kTile) * kTile);
  const int width = std::max(p.in, p.out);
  p.tiles = width <= 64 ? 4 : width <= 128 ? 8 : 16;
  return p;
}

size_t lay_out(MlpPlan& p) {
  Workspace workspace(p.workspace);
  p.partials = workspace.take_floats(int64_t{p.row_blocks} * p.num_weights());
  if (p.fused && p.column_groups > 1) p.d_x_sums = workspace.take_floats(p.column_groups * p.num_rows * p.in);
  return workspace.size();
}

bool supported(const MlpParams& p) {
  const int max_width = p.dtype == DType::kFloat32 ? p.kMaxFloat32Width : p.kMaxWidth;
  auto takes = [&](int width) { return width > 0 && width % p.kUnit == 0 && width <= max_width; };
  return takes(p.in) && takes(p.out) && p.hidden > 0 && p.num_rows <= p.kMaxRows;
}

}  // namespace

size_t mlp_backward_workspace(const MlpParams& params) {
  if (!supported(params)) return 0;
  MlpPlan p = make_plan(params);
  dispatch_mlp(p.dtype, p.tiles, [&](auto kernels) { plan_columns(kernels, p); });
  return lay_out(p);
}

cudaError_t mlp_forward(const MlpParams& params, cudaStream_t stream) {
  if (!supported(params)) return cudaErrorInvalidValue;
  MlpPlan p = make_plan(params);
  return dispatch_mlp(p.dtype, p.tiles, [&](auto kernels) {
    plan_rows(kernels, p, 1);
    return kernels.forward(p, stream);
  });
}

cudaError_t mlp_backward(const MlpParams& params, cudaStream_t stream) {
  if (!supported(params)) return cudaErrorInvalidValue;
  MlpPlan p = make_plan(params);
  return dispatch_mlp(p.dtype, p.tiles, [&](auto kernels) {
    plan_columns(kernels, p);
    if (static_cast<int64_t>(kernels.column_bytes(p)) > p.max_shared_bytes) return cudaErrorInvalidValue;
    lay_out(p);
    if (!p.fused) {
      plan_rows(kernels, p, 2);
      RECGRELA_RETURN_IF_ERROR(kernels.d_rows(p, stream));
    }
    RECGRELA_RETURN_IF_ERROR(kernels.d_weights(p, stream));
    const StoreMlpGradients store{p.d_w1, p.d_w2, p.d_b1, p.d_b2, p.in, p.hidden, p.out};
    return add_partials(p.partials, p.row_blocks, p.num_weights(), store, stream);
  });
}

}  // namespace recgrela::cuda
