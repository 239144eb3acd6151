// Backward of linear for 16-bit rows, and for float32 rows that do not fit split_backward.cuh. Blocks iterate over
// tiles of 64 rows, whose d_y arrives in chunks of 64 columns, one or two chunks ahead. From a chunk, the warps add to
// d_x, whose weights are in shared memory, and to the gradients of the weights, which stay in registers until the
// block's last tile. Each warp holds a quarter of each chunk's outputs and half of the slice's columns of x.
#pragma once

#include <algorithm>

#include "kernels/common/stage.cuh"
#include "kernels/linear/plan.cuh"
#include "kernels/linear/split_backward.cuh"

namespace recgrela::cuda {

// Distance of rows in shared memory, for which the loads of transposed operands have no bank conflicts.
template <typename E>
__host__ __device__ constexpr int tile_stride(int columns) {
  return columns + (sizeof(E) == 4 ? 4 : 8);
}

// The 16-byte vectors of a tile of kColumns columns that this thread copies: one column of them, kRows rows apart.
template <typename E, int kColumns>
struct StagedVectors {
  static constexpr int kVector = 16 / sizeof(E), kVectors = kColumns / kVector, kRows = kBackwardThreads / kVectors;

  static __device__ int column() { return static_cast<int>(threadIdx.x) % kVectors * kVector; }
  static __device__ int row() { return static_cast<int>(threadIdx.x) / kVectors; }
  // Starts the copies. `source` is the thread's first element; `left` rows follow it, including its own.
  static __device__ void copy(E* shared, const E* source, int stride, int left) {
    E* const to = shared + row() * tile_stride<E>(kColumns) + column();
#pragma unroll
    for (int i = 0; i < kBackwardRows; i += kRows)
      copy_async16(to + i * tile_stride<E>(kColumns), source + static_cast<uint32_t>(i) * static_cast<uint32_t>(stride),
                   i < left);
  }
};

// Shared memory of the backward. kTiles: tiles of x's columns per warp.
template <typename E, int kTiles>
struct BackwardShared {
  static constexpr int kStages = sizeof(E) == 4 ? 2 : 3;
  static constexpr int kColumns = 2 * kTiles * 16;  // of x
  static constexpr int kXTile = kBackwardRows * tile_stride<E>(kColumns);
  static constexpr int kDyTile = kBackwardRows * tile_stride<E>(kChunkColumns);
  static constexpr int kWeightVectors = kPackedTile * int{sizeof(E)} / 16;

  uint4* weights;  // [chunks, kChunkTiles, 2, kTiles] operands
  E *x, *d_y;      // kStages tiles

  __device__ explicit BackwardShared(int chunks) {
    weights = reinterpret_cast<uint4*>(dynamic_shared());
    x = reinterpret_cast<E*>(weights + chunks * kChunkTiles * 2 * kTiles * kWeightVectors);
    d_y = x + kStages * kXTile;
  }
  static size_t bytes(int chunks) {
    return chunks * kChunkTiles * 2 * kTiles * kWeightVectors * sizeof(uint4) +
           kStages * (kXTile + kDyTile) * sizeof(E);
  }

  __device__ Operand<E> weight(int tile) const {
    return load_packed<E>(reinterpret_cast<const E*>(weights + tile * kWeightVectors));
  }

  // Stages the weights transposed: operands whose rows are columns of x from `first` on, and whose inner dimension is
  // the outputs. Zeros are in the place of missing rows and columns.
  __device__ void stage_transposed(const LinearPlan& p, int first) const {
    const int lane = threadIdx.x % 32;
    for (int i = threadIdx.x / 32; i < p.chunks * kChunkTiles * 2 * kTiles; i += kBackwardThreads / 32) {
      const int column = first + i % (2 * kTiles) / kTiles * kTiles * 16;
      int output = i / (2 * kTiles) * 16;
      const bool second = output >= p.first_outputs, exists = output < p.outputs;
      const float* const weight = p.weight_of(second);
      if (second) output -= p.first_outputs;
      Acc w;
#pragma unroll
      for (int k = 0; k < 8; ++k) {
        const int j = k / 4, e = k % 4;
        const int c = column + output_column<E, kTiles>(i % kTiles, tile_row(lane, e));
        w.x[j][e] = exists && c < p.width ? weight[(output + tile_col(lane, j, e)) * p.width + c] : 0.f;
      }
      store_packed(reinterpret_cast<E*>(weights + i * kWeightVectors), w, 1.f);
    }
  }
};

// Stages the next chunk of d_y, and x if it is the first of a tile.
template <typename E, typename Shared>
class ChunkQueue {
 public:
  __device__ ChunkQueue(const LinearPlan& p, const Shared& shared, int first_column, int tile)
      : p_(p), shared_(shared), tile_(tile) {
    const int row = tile * kBackwardRows + X::row(), column = first_column + X::column();
    x_ = p.x.row<const E>(row) + column;
    x_left_ = column < p.width ? p.num_rows - row : 0;
  }

  __device__ void push() {
    if (tile_ < p_.row_tiles) {
      if (chunk_ == 0) {
        X::copy(shared_.x + x_slot_ * Shared::kXTile, x_, p_.x.stride, x_left_);
        x_ += p_.x_step, x_left_ -= p_.row_step;
        x_slot_ = x_slot_ + 1 == Shared::kStages ? 0 : x_slot_ + 1;
      }
      const int row = tile_ * kBackwardRows + DY::row(), output = chunk_ * kChunkColumns + DY::column();
      const bool second = output >= p_.first_outputs;
      const PlanRows d_y = p_.rows_of(second);
      DY::copy(shared_.d_y + slot_ * Shared::kDyTile, d_y.row<const E>(row) + output - (second ? p_.first_outputs : 0),
               d_y.stride, output < p_.outputs ? p_.num_rows - row : 0);
      if (++chunk_ == p_.chunks) chunk_ = 0, tile_ += p_.row_blocks;
    }
    slot_ = slot_ + 1 == Shared::kStages ? 0 : slot_ + 1;
    copies_commit();
  }

 private:
  using X = StagedVectors<E, Shared::kColumns>;
  using DY = StagedVectors<E, kChunkColumns>;
  const LinearPlan& p_;
  const Shared& shared_;
  int tile_, chunk_ = 0, slot_ = 0, x_slot_ = 0;
  const E* x_;  // this thread's first element of the next tile
  int x_left_;  // rows from it on
};

// Blocks that a multiprocessor's registers hold. kChunks: most chunks of d_y.
template <typename E, int kChunks, int kTiles>
constexpr int kBackwardBlocks = sizeof(E) == 4         ? 1
                                : kChunks * kTiles > 2 ? 2
                                                       : 3;

template <typename E, int kChunks, int kTiles>
__global__ void __launch_bounds__(kBackwardThreads, kBackwardBlocks<E, kChunks, kTiles>)
    linear_backward_kernel(const LinearPlan p) {
  using Shared = BackwardShared<E, kTiles>;
  // float32 operands, and many sums, leave few registers.
  [[maybe_unused]] constexpr int kUnroll = sizeof(E) == 4 ? 1 : kChunks > 3 ? 2 : 4;
  constexpr int kXStride = tile_stride<E>(Shared::kColumns), kDyStride = tile_stride<E>(kChunkColumns);
  const int slice = blockIdx.x % p.slices, row_block = blockIdx.x / p.slices;
  const int first_column = slice * Shared::kColumns;
  const int lane = threadIdx.x % 32, quarter = threadIdx.x / 32 % 4, half = threadIdx.x / 128;
  const bool adds_biases = p.has_bias() && slice == 0 && half == 0;
  const Shared shared(p.chunks);
  ChunkQueue<E, Shared> queue(p, shared, first_column, row_block);
#pragma unroll
  for (int i = 0; i + 1 < Shared::kStages; ++i) queue.push();
  if (p.d_x.data) shared.stage_transposed(p, first_column);

  Operand<E> ones;
  if constexpr (sizeof(E) == 4) {
#pragma unroll
    for (int i = 0; i < 8; ++i) set_element(ones, i / 4, i % 4, 1.f);
  } else {
    ones.r[0] = ones.r[1] = ones.r[2] = ones.r[3] = pack2<E>(1.f, 1.f);
  }
  Acc d_weight[kChunks][kTiles];
  RowPair d_bias[kChunks];
  int slot = 0, x_slot = 0;
#pragma unroll 1
  for (int tile = row_block; tile < p.row_tiles; tile += p.row_blocks) {
    const E* const x = shared.x + x_slot * Shared::kXTile + half * kTiles * 16;
    x_slot = x_slot + 1 == Shared::kStages ? 0 : x_slot + 1;
    Acc d_x[kTiles];
    if constexpr (kChunks < 8)  // with 8, it has no registers left
      prefetch_passed<E, kBackwardRows, Shared::kColumns>(p, tile * kBackwardRows, first_column);
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      if (c >= p.chunks) continue;
      copies_wait<Shared::kStages - 2>();
      __syncthreads();
      queue.push();
      const E* const d_y = shared.d_y + slot * Shared::kDyTile;
      slot = slot + 1 == Shared::kStages ? 0 : slot + 1;
#pragma unroll kUnroll
      for (int r = 0; r < kBackwardRows / 16; ++r) {
        const Operand<E> d_yt = load_operand<E, true>(d_y + r * 16 * kDyStride + quarter * 16, kDyStride);
#pragma unroll
        for (int i = 0; i < kTiles; ++i)
          mma(d_weight[c][i], d_yt, load_operand<E, true, true>(x + r * 16 * kXStride + i * 16, kXStride));
        if (adds_biases) {
          float sums[4];
          mma_columns<false>(sums, d_yt, ones, 0);
          d_bias[c].x[0] += sums[0], d_bias[c].x[1] += sums[2];
        }
        limit_overlap<E>();
      }
      if (p.d_x.data) {
#pragma unroll kUnroll
        for (int n = 0; n < kChunkTiles; ++n) {
          const Operand<E> rows = load_operand<E, false, true>(d_y + quarter * 16 * kDyStride + n * 16, kDyStride);
#pragma unroll
          for (int i = 0; i < kTiles; ++i)
            mma(d_x[i], shared.weight(((c * kChunkTiles + n) * 2 + half) * kTiles + i), rows);
          limit_overlap<E>();
        }
      }
    }
    const int column = first_column + half * kTiles * 16, row = tile * kBackwardRows + quarter * 16;
    if (p.d_passed.data)
      add_outputs(d_x, p.d_passed.row<const E>(row) + column, p.d_passed.stride, p.num_rows - row, p.width - column);
    if (p.d_x.data) store_outputs(p.d_x.row<E>(row) + column, p.d_x.stride, p.num_rows - row, p.width - column, d_x);
  }

  float* const partials = p.partials + int64_t{row_block} * p.num_gradients;
#pragma unroll
  for (int c = 0; c < kChunks; ++c) {
    const int output = c * kChunkColumns + quarter * 16;
    if (output >= p.outputs) continue;
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
      const int column = first_column + (half * kTiles + i) * 16;
      if (column >= p.width) continue;
#pragma unroll
      for (int k = 0; k < 8; k += 2) {
        const int j = k / 4, e = k % 4;
        float* const to = partials + (output + tile_row(lane, e)) * p.width + column + tile_col(lane, j, 0);
        store2(to, d_weight[c][i].x[j][e], d_weight[c][i].x[j][e + 1]);
      }
    }
    if (adds_biases && lane % 4 == 0) {
      float* const to = partials + p.width * p.outputs + output + lane / 4;
      to[0] = d_bias[c].x[0], to[8] = d_bias[c].x[1];
    }
  }
}

template <typename E, int kChunks, int kTiles>
struct BackwardKernel {
  using Shared = BackwardShared<E, kTiles>;
  static constexpr int kOutputs = kChunks * kChunkColumns;

  static size_t shared_bytes(const LinearPlan& p) {
    return Shared::bytes(static_cast<int>(ceil_div(p.outputs, kChunkColumns)));
  }
  static void plan(LinearPlan& p) {
    p.chunks = static_cast<int>(ceil_div(p.outputs, kChunkColumns));
    p.slices = static_cast<int>(ceil_div(p.width, Shared::kColumns));
    p.row_tiles = static_cast<int>(ceil_div(p.num_rows, kBackwardRows));
    const int resident = Shared::bytes(p.chunks) > 113 * 1024 ? 1 : kBackwardBlocks<E, kChunks, kTiles>;
    p.row_blocks = std::min(p.row_tiles, std::max(1, resident * multiprocessors() / p.slices));
    p.row_step = p.row_blocks * kBackwardRows;
    p.x_step = int64_t{p.row_step} * p.x.stride;
  }
  static cudaError_t run(const LinearPlan& p, cudaStream_t stream) {
    return launch(linear_backward_kernel<E, kChunks, kTiles>, int64_t{p.row_blocks} * p.slices, kBackwardThreads,
                  Shared::bytes(p.chunks), stream, p);
  }
};

// Calls f with the kernel for the operands. A thread has up to 64 sums of weight gradients in registers, so that with
// more outputs a block takes fewer columns of x, and more slices read d_y.
template <typename E, typename F>
cudaError_t with_backward_kernel(const LinearPlan& p, F f) {
  auto fits = [&](auto kernel) {
    return p.outputs <= kernel.kOutputs && kernel.shared_bytes(p) <= static_cast<size_t>(p.max_shared_bytes);
  };
  if constexpr (sizeof(E) == 4) {
    if (SplitBackward<4, 1, 1> kernel; fits(kernel)) return f(kernel);
    if (SplitBackward<8, 1, 1> kernel; fits(kernel)) return f(kernel);
    if (SplitBackward<4, 3, 1> kernel; fits(kernel)) return f(kernel);
    if (SplitBackward<4, 4, 2> kernel; fits(kernel)) return f(kernel);
    return f(BackwardKernel<E, 8, 1>{});
  } else {
    if (BackwardKernel<E, 1, 2> kernel; p.width > 32 && fits(kernel)) return f(kernel);
    if (BackwardKernel<E, 3, 2> kernel; p.width > 32 && fits(kernel)) return f(kernel);
    if (BackwardKernel<E, 4, 2> kernel; p.width > 32 && fits(kernel)) return f(kernel);
    if (BackwardKernel<E, 2, 1> kernel; fits(kernel)) return f(kernel);
    return f(BackwardKernel<E, 8, 1>{});
  }
}

template <typename E>
void LinearKernels<E>::plan_backward(LinearPlan& p) {
  with_backward_kernel<E>(p, [&](auto kernel) {
    kernel.plan(p);
    return cudaSuccess;
  });
}
template <typename E>
cudaError_t LinearKernels<E>::backward(const LinearPlan& p, cudaStream_t stream) {
  return with_backward_kernel<E>(p, [&](auto kernel) { return kernel.run(p, stream); });
}

}  // namespace recgrela::cuda
