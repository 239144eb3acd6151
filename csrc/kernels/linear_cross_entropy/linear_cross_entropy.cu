// Host side of linear_cross_entropy: mean cross-entropy of the scores X W^T + bias, and its gradients, without scores
// in memory. Four launches at most:
//   prepare    table and hidden in half precision, or their bf16 parts; sums of the table's columns for label smoothing
//   softmax    rows stay, items pass: maximum, sum of exponentials and sum of weighted items (softmax.cuh)
//   gradients  items stay, rows pass: d_weight and d_bias (gradients.cuh); and loss and d_hidden of rows (rows.cuh)
//   sum        adds partial losses, and the partial gradients if rows were split
#include <algorithm>
#include <cmath>

#include "kernels/common/workspace.cuh"
#include "kernels/linear_cross_entropy/plan.cuh"

namespace recgrela::cuda {
namespace {

constexpr int kMaxSplits = 32;
// Work of a block beside its stages, in stages: loading operands, storing partial sums and adding them.
constexpr int64_t kBlockOverhead = 3;

// Splits the stages of each tile among the number of blocks that takes the least time, if all blocks that fit run at
// once.
EntropyGrid make_grid(int64_t tiles, int64_t stages, int blocks_at_once) {
  EntropyGrid best;
  int64_t least = INT64_MAX;
  for (int64_t splits = 1; splits <= std::min<int64_t>(stages, kMaxSplits); ++splits) {
    const int64_t per_split = ceil_div(stages, splits);
    if (ceil_div(stages, per_split) != splits) continue;
    const int64_t time = ceil_div(tiles * splits, blocks_at_once) * (per_split + kBlockOverhead);
    if (time < least) least = time, best = {tiles, stages, splits, per_split};
  }
  return best;
}

EntropyPlan make_plan(const LinearCrossEntropyParams& params) {
  EntropyPlan p;
  static_cast<LinearCrossEntropyParams&>(p) = params;
  const bool half = p.dtype != DType::kFloat32, parameters = p.d_weight || p.d_bias;
  const EntropyTiles tiles = EntropyTiles::of(static_cast<int>(size_of(p.dtype)), entropy_width(p.dim));
  const int blocks_at_once = multiprocessors() * tiles.min_blocks;
  p.scores = make_grid(ceil_div(p.num_rows, tiles.rows), ceil_div(p.num_items, tiles.stage), blocks_at_once);
  p.items = parameters ? make_grid(ceil_div(p.num_items, tiles.rows), ceil_div(p.num_rows, tiles.stage), blocks_at_once)
                       : EntropyGrid{};
  const bool prepares = half || tiles.split || p.label_smoothing != 0.f;
  p.prepare_blocks = prepares ? std::min<int64_t>(ceil_div(p.num_items, 16), kMaxPrepareBlocks) : 0;
  const bool converts_hidden = tiles.split || p.float32_hidden;
  p.hidden_blocks = converts_hidden ? ceil_div(p.num_rows, kConvertedRows) : 0;
  p.finish_blocks = ceil_div(p.num_rows, kFinishRows);

  p.coefficient_scale = p.dtype == DType::kFloat16 ? std::exp2(kExponentShift<fp16>) : 1.f;
  p.spread = p.coefficient_scale * p.label_smoothing / static_cast<float>(p.num_items);
  p.one_hot = p.coefficient_scale * (1.f - p.label_smoothing);

  Workspace workspace(p.workspace);
  const int64_t table = p.num_items * p.dim, rows = p.num_rows * p.dim,
                splits = p.items.splits > 1 ? p.items.splits : 0;
  const int64_t part_bytes = tiles.split ? 3 * 2 : half ? 2 : 0;  // of an element
  void* const item_parts = workspace.take_bytes(table * part_bytes);
  void* const hidden_parts = workspace.take_bytes(converts_hidden ? rows * part_bytes : 0);
  p.item_parts = part_bytes ? item_parts : nullptr, p.hidden_parts = converts_hidden ? hidden_parts : nullptr;
  p.column_sums = p.label_smoothing != 0.f ? workspace.take_floats(p.prepare_blocks * (p.dim + 1)) : nullptr;
  p.row_partials = static_cast<float2*>(workspace.take_bytes(p.scores.splits * p.num_rows * sizeof(float2)));
  p.hidden_partials = workspace.take_floats(p.d_hidden ? p.scores.splits * p.num_rows * p.dim : 0);
  float* const weight_partials = workspace.take_floats(p.d_weight ? splits * table : 0);
  float* const bias_partials = workspace.take_floats(p.d_bias ? splits * p.num_items : 0);
  p.weight_partials = splits ? weight_partials : nullptr, p.bias_partials = splits ? bias_partials : nullptr;
  p.loss_partials = static_cast<double*>(workspace.take_bytes(p.finish_blocks * sizeof(double)));
  p.workspace_bytes = workspace.size();
  p.rows = p.float32_hidden ? RowMatrix{p.hidden_parts, p.dim} : p.hidden;
  p.table = half ? RowMatrix{p.item_parts, p.dim} : p.weight;
  p.x_items = part_bytes ? EntropyMatrix{{p.item_parts, p.dim}, table} : EntropyMatrix{p.weight, 0};
  p.x_hidden = converts_hidden ? EntropyMatrix{{p.hidden_parts, p.dim}, rows} : EntropyMatrix{p.hidden, 0};
  return p;
}

struct EntropySums {
  EntropyPlan p;
  int64_t weight_blocks;  // after the block that adds the loss; then blocks of d_bias
};

inline __device__ void add_splits(const float* partials, int64_t splits, int64_t size, int64_t i, float* sums) {
  float sum = 0.f;
#pragma unroll 4
  for (int64_t s = 0; s < splits; ++s) sum += partials[s * size + i];
  sums[i] = sum;
}

__global__ void __launch_bounds__(kSumThreads) sum_kernel(const EntropySums sums) {
  const EntropyPlan& p = sums.p;
  if (blockIdx.x == 0) {
    double* const shared = reinterpret_cast<double*>(dynamic_shared());
    double loss = 0;
    for (int64_t i = threadIdx.x; i < p.finish_blocks; i += kSumThreads) loss += p.loss_partials[i];
    shared[threadIdx.x] = loss;
    __syncthreads();
    if (threadIdx.x != 0) return;
    for (int i = 1; i < kSumThreads; ++i) loss += shared[i];
    *p.loss = static_cast<float>(loss / p.num_rows);
    return;
  }
  const int64_t block = blockIdx.x - 1, i = block * kSumThreads + threadIdx.x;
  if (block < sums.weight_blocks) {
    if (i < p.num_items * p.dim) add_splits(p.weight_partials, p.items.splits, p.num_items * p.dim, i, p.d_weight);
  } else if (const int64_t item = i - sums.weight_blocks * kSumThreads; item < p.num_items) {
    add_splits(p.bias_partials, p.items.splits, p.num_items, item, p.d_bias);
  }
}

cudaError_t add_up(const EntropyPlan& p, cudaStream_t stream) {
  const bool split = p.items.splits > 1;
  const int64_t weight_blocks = split && p.d_weight ? ceil_div(p.num_items * p.dim, kSumThreads) : 0;
  const int64_t bias_blocks = split && p.d_bias ? ceil_div(p.num_items, kSumThreads) : 0;
  return launch(sum_kernel, 1 + weight_blocks + bias_blocks, kSumThreads, kSumThreads * sizeof(double), stream,
                EntropySums{p, weight_blocks});
}

bool supported(const LinearCrossEntropyParams& p) {
  return p.dim >= p.kMinWidth && p.dim <= p.kMaxWidth && p.dim % kTile == 0 && p.num_rows > 0 && p.num_items > 0 &&
         p.num_items < (int64_t{1} << 31) - p.kMaxWidth && p.num_rows < (int64_t{1} << 31) - p.kMaxWidth &&
         !(p.float32_hidden && p.dtype == DType::kFloat32) &&
         is_aligned(p.hidden, p.float32_hidden ? DType::kFloat32 : p.dtype, 16) &&
         is_aligned(p.weight, DType::kFloat32, 16);
}

}  // namespace

size_t linear_cross_entropy_workspace(const LinearCrossEntropyParams& params) {
  return supported(params) ? make_plan(params).workspace_bytes : 0;
}

cudaError_t linear_cross_entropy_forward(const LinearCrossEntropyParams& params, cudaStream_t stream) {
  if (!supported(params)) return cudaErrorInvalidValue;
  const EntropyPlan p = make_plan(params);
  RECGRELA_RETURN_IF_ERROR(dispatch_dtype(p.dtype, [&](auto element) {
    using Kernels = EntropyKernels<decltype(element)>;
    if (p.prepare_blocks > 0) RECGRELA_RETURN_IF_ERROR(Kernels::prepare(p, stream));
    RECGRELA_RETURN_IF_ERROR(Kernels::softmax(p, stream));
    return Kernels::gradients(p, stream);
  }));
  return add_up(p, stream);
}

cudaError_t linear_cross_entropy_backward(const LinearCrossEntropyScaleParams& params, cudaStream_t stream) {
  return dispatch_dtype(params.dtype,
                        [&](auto element) { return EntropyKernels<decltype(element)>::scale(params, stream); });
}

}  // namespace recgrela::cuda
