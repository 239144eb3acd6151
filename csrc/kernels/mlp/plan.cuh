// Plan of an mlp call: its parameters and how rows and hidden columns are divided among blocks.
#pragma once

#include <type_traits>

#include "kernels/common/split.cuh"
#include "kernels/common/stage.cuh"
#include "kernels/mlp/params.h"

namespace recgrela::cuda {

constexpr int kMlpMaxWarps = 8;  // of a block of the gradient of the rows

struct MlpPlan : MlpParams {
  int rows = 0;                // T
  uint32_t hidden_stride = 0;  // indices that dropout counts for a row of the hidden layer: F rounded up to whole tiles
  int tiles = 0;               // of I and O, padded with zeros to the same number: 4, 8 or 16

  // Kernels by rows: a warp processes 16 rows at a time, with the weights of `group` hidden columns in shared memory.
  int warps = 0, group = 0;
  int64_t blocks = 0;

  // Kernel by columns, which adds up the gradients of the weights: each of a block's warps owns 16 hidden columns, and
  // a block processes every row_blocks-th step of rows.
  int column_warps = 0, column_groups = 0;
  int step_rows = 0, row_blocks = 0;
  bool fused = false;         // whether this kernel also computes d_x
  float* d_x_sums = nullptr;  // [column_groups, T, I], if it does and there are several groups
  float* partials = nullptr;  // [row_blocks, num_weights()]: d_w1 [F, I], transposed d_w2 [F, O], d_b1, d_b2

  __host__ __device__ int64_t num_weights() const { return int64_t{hidden} * (in + out + 1) + out; }
};

// Plan of a call of mlp_block. Its kernels are those of mlp, for this type of plan.
struct MlpBlockPlan : MlpPlan, MlpNorm {
  float inverse_width = 0;
  float* norm_partials = nullptr;  // [row_blocks, column_groups, 2, D], if there are several groups

  // With one group of hidden columns, the partial sums end with the gradients of the norm's weight and bias.
  __host__ __device__ int64_t num_weights() const { return MlpPlan::num_weights() + (column_groups == 1 ? 2 * in : 0); }
};

template <typename Plan>
constexpr bool kHasNorm = std::is_base_of_v<MlpNorm, Plan>;

// Kernels of one element type and padded width.
template <typename E, int kTiles>
struct MlpKernels {
  static constexpr int kWidth = kTiles * kTile, kStride = stage_stride(kWidth);

  // Whether a warp of the kernels by rows holds its rows as operands in registers; else they are in shared memory.
  static constexpr bool kRowsInRegisters = kParts<E> * kTiles <= 12;
  // Warps of a block of the forward, and blocks that a multiprocessor holds at a time, as registers allow.
  static constexpr int kForwardWarps = kParts<E> * kTiles == 8 || kParts<E> * kTiles == 12 ? 12 : 8;
  static constexpr int kForwardBlocks = kParts<E> * kTiles == 4 ? 3 : 1;
  static constexpr int kRowBlocks = kParts<E> * kTiles == 4 ? 2 : 1;  // of the gradient of the rows
  // Tiles of hidden columns that the forward processes at a time.
  static constexpr int kChunkTiles = kParts<E> == 1 ? 2 : 1;
  // Warps of a block of the kernel by columns, and warps that a multiprocessor holds at a time.
  static constexpr int kResidentColumnWarps = kParts<E> * kTiles == 4 ? 16 : 8;
  static constexpr int kMaxColumnWarps = kParts<E> == 1 ? (kTiles == 4 ? 16 : kTiles == 8 ? 8 : 4) : 32 / kTiles;
  static constexpr bool kCanFuse = kTiles == 4;
  static constexpr int kStepRows = kParts<E> * kTiles == 4 ? 64 : 32;  // of the kernel by columns
  // The same where even one warp's memory would not fit into the 99 KiB that some GPUs have.
  static constexpr int kFewStepRows = kParts<E> * kTiles == 24 ? 16 : kStepRows;
  // A warp of the kernel by columns accumulates this many tiles of d_w1 and of d_w2; wider rows are divided.
  static constexpr int kAccTiles = kParts<E> == 1 && kTiles > 4 ? 8 : 4, kDivisions = kTiles / kAccTiles;

  // Weights in shared memory: panels of kPanel hidden columns, with kParts of w1 and of w2; see weights.cuh.
  static constexpr int kPanel = kParts<E> * kTiles <= 12 ? 64 : 32, kStride2 = stage_stride(kPanel);
  static constexpr int kPart1 = kPanel * kStride, kPart2 = kWidth * kStride2;
  static constexpr int kPanelSize = kParts<E> * (kPart1 + kPart2);
  static __host__ __device__ int panels(int columns) { return (columns + kPanel - 1) / kPanel; }
  static __host__ __device__ size_t weight_bytes(int columns) {
    return size_t{2} * panels(columns) * (kPanelSize + 2 * kPanel);
  }
  static size_t row_bytes(const MlpPlan& p, int operands) {
    const size_t rows = kRowsInRegisters ? 0 : size_t{2} * operands * p.warps * kTile * kStride * kParts<E>;
    return weight_bytes(p.group) + kWidth * sizeof(float) + rows;
  }
  static size_t column_bytes(const MlpPlan& p) {
    const int columns = p.column_warps * kTile;
    const size_t d_h = p.fused ? size_t{2} * panels(columns) * kPanel * stage_stride(p.step_rows) * kParts<E> : 0;
    return weight_bytes(columns) + size_t{2} * 2 * p.step_rows * kStride * kParts<E> + d_h +
           columns * (2 * 16 / sizeof(E)) * sizeof(float);
  }
  static size_t column_bytes(const MlpBlockPlan& p) {
    const size_t threads = size_t{32} * p.column_warps;
    return column_bytes(static_cast<const MlpPlan&>(p)) + threads * (8 - 16 / sizeof(E)) * sizeof(float) +
           p.step_rows * 2 * sizeof(float) + 2 * sizeof(uint4);
  }

  static cudaError_t forward(const MlpPlan& plan, cudaStream_t stream);
  static cudaError_t d_rows(const MlpPlan& plan, cudaStream_t stream);
  static cudaError_t d_weights(const MlpPlan& plan, cudaStream_t stream);
};

// Kernels of mlp_block, for rows padded to 64 features.
template <typename E>
struct MlpBlockKernels {
  using K = MlpKernels<E, 4>;

  static cudaError_t forward(const MlpBlockPlan& plan, cudaStream_t stream);
  // Stores d_x, d_branch and the partial sums of the other gradients.
  static cudaError_t backward(const MlpBlockPlan& plan, cudaStream_t stream);
};

// Calls f(MlpKernels<E, kTiles>{}).
template <typename F>
auto dispatch_mlp(DType dtype, int tiles, F f) {
  auto of_type = [&](auto element) {
    using E = decltype(element);
    if (tiles == 4) return f(MlpKernels<E, 4>{});
    if constexpr (sizeof(E) == 2)
      if (tiles == 16) return f(MlpKernels<E, 16>{});
    return f(MlpKernels<E, 8>{});
  };
  return dtype == DType::kFloat32 ? of_type(float{}) : dtype == DType::kFloat16 ? of_type(fp16{}) : of_type(bf16{});
}

}  // namespace recgrela::cuda
