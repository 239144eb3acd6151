// Sizes of tiles, and how the work of linear_cross_entropy is divided into blocks.
#pragma once

#include "kernels/common/host.cuh"
#include "kernels/common/stage.cuh"
#include "kernels/common/tile.cuh"
#include "kernels/linear_cross_entropy/params.h"

namespace recgrela::cuda {

constexpr int kEntropyWarps = 4, kEntropyThreads = 32 * kEntropyWarps;
constexpr int kFinishRows = 64;  // rows whose gradients a block finishes
constexpr int kPrepareThreads = 256;
constexpr int kMaxPrepareBlocks = 128;  // partial sums of columns
constexpr int kSumThreads = 256;

// Tiles of the kernels for elements of a size and rows padded to a width. A block keeps `rows` rows, whose operands are
// in registers if they fit, while the other matrix passes through shared memory, `stage` rows at a time.
struct EntropyTiles {
  int width;
  int warp_tiles;  // of 16 rows that a warp keeps: two share the loads of the passing operands
  int rows, stage;
  bool in_registers;
  int min_blocks;  // per multiprocessor, which limits the registers of a thread

  static constexpr EntropyTiles of(int element_size, int width) {
    const bool half = element_size == 2;
    const int warp_tiles = half && width <= 64 ? 2 : 1;
    const int stage = half || width <= 64 ? 64 : width <= 128 ? 32 : 16;
    return {width, warp_tiles, kEntropyWarps * kTile * warp_tiles, stage, half || width <= 128, width <= 64 ? 3 : 2};
  }
  // Rows of shared memory: two stages, in whose place the kept rows are loaded if they then go to registers.
  constexpr int shared_rows() const { return in_registers ? (rows > 2 * stage ? rows : 2 * stage) : rows + 2 * stage; }
};

// Smallest width of the kernels that holds rows of `dim` elements.
inline int entropy_width(int dim) { return dim <= 32 ? 32 : dim <= 64 ? 64 : dim <= 128 ? 128 : 256; }

// Division of a product: tiles of kept rows, and stages of passing rows, which several blocks share.
struct EntropyGrid {
  int64_t tiles = 0, stages = 0, splits = 0, stages_per_split = 0;
  __host__ __device__ int64_t blocks() const { return tiles * splits; }
  __device__ int last_stage(int first) const {  // of the split that begins with the stage `first`
    const int64_t end = first + stages_per_split;
    return static_cast<int>(end < stages ? end : stages);
  }
};

struct EntropyPlan : LinearCrossEntropyParams {
  RowMatrix table;     // the weight in dtype
  EntropyGrid scores;  // tiles of rows, stages of items
  EntropyGrid items;   // tiles of items, stages of rows
  int64_t prepare_blocks, finish_blocks;

  // Workspace
  void* half_table;        // [N, D]; null for float32
  float* column_sums;      // [prepare_blocks, D + 1]: of weight and bias; null without smoothing
  float2* row_partials;    // [scores.splits, T]: maximum and sum of exponentials, see softmax.cuh
  float* hidden_partials;  // [scores.splits, T, D]; null without d_hidden
  float* weight_partials;  // [items.splits, N, D]; null if there is one split or no d_weight
  float* bias_partials;    // [items.splits, N]; likewise
  double* loss_partials;   // [finish_blocks]
  size_t workspace_bytes;
};

// The kernels of one element type.
template <typename E>
struct EntropyKernels {
  static cudaError_t prepare(const EntropyPlan& p, cudaStream_t stream);
  static cudaError_t softmax(const EntropyPlan& p, cudaStream_t stream);
  static cudaError_t gradients(const EntropyPlan& p, cudaStream_t stream);
  static cudaError_t scale(const LinearCrossEntropyScaleParams& p, cudaStream_t stream);
};

}  // namespace recgrela::cuda
