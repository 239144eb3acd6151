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
constexpr int kConvertedRows = 64;      // rows of hidden that a block converts
constexpr int kMaxPrepareBlocks = 128;  // partial sums of columns
constexpr int kSumThreads = 256;

// Tiles of the kernels for elements of a size and rows padded to a width. A block keeps `rows` rows, whose operands are
// in registers if they fit, while the other matrix passes through shared memory, `stage` rows at a time.
struct EntropyTiles {
  int width;
  int warp_tiles;  // of 16 rows that a warp keeps: two share the loads of the passing operands
  int rows, stage;
  bool in_registers;
  // Whether float32 operands are sums of bf16 numbers, which are split once and not at every use (split.cuh). They have
  // no room in the registers for the largest width, which uses TF32 numbers (tile.cuh).
  bool split;
  int min_blocks;  // per multiprocessor, which limits the registers of a thread
  int stride;      // of rows in shared memory, in elements
  int row_values;  // rows whose normalizers and targets are in shared memory

  static constexpr EntropyTiles of(int element_size, int width) {
    const bool half = element_size == 2, in_registers = half || width <= 64, split = !half && width <= 128;
    const int warp_tiles = half && width <= 64 ? 2 : 1, stage = in_registers ? 64 : 16;
    // The largest tiles of float32 just fit into the 99 KiB that some GPUs have.
    const bool largest = !half && !split;
    return {width,
            warp_tiles,
            kEntropyWarps * kTile * warp_tiles,
            stage,
            in_registers,
            split,
            width <= 64 ? 3 : 2,
            largest ? width + 4 : stage_stride(width),
            largest ? 128 : 512};
  }
  // Rows of shared memory: two stages, in whose place the kept rows are loaded if they then go to registers.
  constexpr int shared_rows() const { return in_registers ? (rows > 2 * stage ? rows : 2 * stage) : rows + 2 * stage; }
};

// Exponentials are computed times 2^kExponentShift.
template <typename E>
constexpr float kExponentShift = 0.f;
template <>
constexpr float kExponentShift<fp16> = 8.f;

// Smallest width of the kernels that holds rows of `dim` elements.
inline int entropy_width(int dim) { return dim <= 32 ? 32 : dim <= 64 ? 64 : dim <= 128 ? 128 : 256; }

// Division of a product: tiles of kept rows, and stages of passing rows, which several blocks share.
struct EntropyGrid {
  int64_t tiles = 0, stages = 0, splits = 0, stages_per_split = 0;
  __host__ __device__ int64_t blocks() const { return tiles * splits; }
};

// A matrix as operands of products: its elements, or the bf16 numbers that add up to them, part by part.
struct EntropyMatrix {
  RowMatrix rows;
  int64_t part_size = 0;  // elements from one part to the next
};

struct EntropyPlan : LinearCrossEntropyParams {
  RowMatrix rows;      // hidden in dtype
  RowMatrix table;     // the weight in dtype
  EntropyGrid scores;  // tiles of rows, stages of items
  EntropyGrid items;   // tiles of items, stages of rows
  int64_t prepare_blocks, finish_blocks;
  int64_t hidden_blocks;            // that convert rows of hidden, after the prepare_blocks
  EntropyMatrix x_hidden, x_items;  // rows and table

  // The second pass computes coefficients times a power of two, because fp16 has few small numbers.
  float coefficient_scale;
  float spread, one_hot;  // a / N and 1 - a, in that scale, for the label smoothing a

  // Workspace
  void* item_parts;        // [parts, N, D]: half precision, or the parts of float32; null if not needed
  void* hidden_parts;      // [parts, T, D]; null unless float32 is split or rounded
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
