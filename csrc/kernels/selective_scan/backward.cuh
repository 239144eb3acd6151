// Backward of selective_scan: chunks of 16 rows from the last to the first, each from the checkpoint before it.
//
// A chunk is processed in tiles of 4 rows. A first pass computes the state before each tile. A second pass goes through
// the tiles in reverse: it recomputes the decays a_i and the states after each row, keeps them in registers, and then
// goes through the rows in reverse with k_i = a_i g_i, where g_i = d_y_i C_i + k_{i+1} and d_y is the gradient before
// the gate. Warps have their own channels and meet only to share rows of B and C and to add their gradients.
#pragma once

#include "kernels/selective_scan/backward_warp.cuh"

namespace recgrela::cuda {

// Rows of B and C that the warps of a block share, and the gradients of B and C, to which all of them contribute.
template <typename E, typename Shape>
struct BackwardBlock {
  static constexpr int kAllStates = Shape::kAllStates, kQuads = Shape::kQuads;
  const SelectivePlan& p;
  float* const stage;
  int staged = -1;  // first row in the stage

  __device__ explicit BackwardBlock(const SelectivePlan& p) : p(p), stage(reinterpret_cast<float*>(dynamic_shared())) {}

  static __device__ E* element_of(const RowMatrix& rows, int64_t row, int n) {
    return static_cast<E*>(rows.data) + row * static_cast<uint32_t>(rows.stride) + n;
  }
  // Stages rows of a segment, which is at `begin` and has `end` rows, from `row0` on, unless they are; zeros for rows
  // from `end` on and states that do not exist. Whole chunks are staged after the previous chunk's gradients.
  __device__ void enter_stage(int row0, int64_t begin, int end) {
    if constexpr (!Shape::kWhole) {
      if (row0 == staged) return;
      staged = row0;
      __syncthreads();
    }
#pragma unroll 1
    for (int i = computed_here(threadIdx.x); i < 2 * Shape::kStageRows * kQuads; i += p.backward_threads) {
      const RowMatrix& rows = i < Shape::kStageRows * kQuads ? p.B : p.C;
      const int r = i / kQuads % Shape::kStageRows, n = i % kQuads * 4;
      const E* const from = element_of(rows, begin + row0 + r, n);
      float quad[4] = {};
      if (p.num_states == kAllStates && p.states_aligned) {
        if (row0 + r < end) {
          const Adjacent<E, 4> all = *reinterpret_cast<const Adjacent<E, 4>*>(from);
#pragma unroll
          for (int k = 0; k < 4; ++k) quad[k] = to_float(all.x[k]);
        }
      } else {
#pragma unroll
        for (int k = 0; k < 4; ++k) quad[k] = row0 + r < end && n + k < p.num_states ? to_float(from[k]) : 0.f;
      }
      store_floats<4>(stage + i * 4, quad);
    }
    __syncthreads();
  }

  // Adds the gradients of B and C over the warps, for rows from `row0` on, and stores them. The block meets again, at
  // the next rows of B and C unless they are staged, before it replaces what this reads.
  __device__ void store_row_gradients(const float* sums, int row0, int64_t begin, int end) const {
    const int warps = p.backward_threads / 32;
    __syncthreads();
#pragma unroll 1
    for (int i = computed_here(threadIdx.x); i < Shape::kSumRows * 2 * kQuads; i += p.backward_threads) {
      const int row = row0 + i / (2 * kQuads), kind = i / kQuads % 2, n = i % kQuads * 4;
      if (row >= end) break;
      float sum[4];
      load_floats<4>(sums + i * 4, sum);
#pragma unroll
      for (int w = 1; w < Shape::kMaxWarps; ++w) {
        if (w >= warps) break;
        float quad[4];
        load_floats<4>(sums + w * Shape::kWarpSize + i * 4, quad);
#pragma unroll
        for (int k = 0; k < 4; ++k) sum[k] += quad[k];
      }
      if (p.row_partials) {
        const int64_t column = blockIdx.x % p.launch_columns;
        store_quad(p.row_partials + ((column * p.sequences.num_rows + begin + row) * 2 + kind) * p.num_states + n, n,
                   sum);
      } else {
        store_quad(element_of(kind ? p.d_C : p.d_B, begin + row, n), n, sum);
      }
    }
    if (Shape::kStageHasTiles) __syncthreads();
  }
  // Stores the gradients of the states n .. n + 3 of a row, as far as they exist.
  template <typename T>
  __device__ void store_quad(T* to, int n, const float (&values)[4]) const {
    if (p.num_states == kAllStates && p.states_aligned) {
      Adjacent<T, 4> all;
#pragma unroll
      for (int k = 0; k < 4; ++k) all.x[k] = from_float<T>(values[k]);
      *reinterpret_cast<Adjacent<T, 4>*>(to) = all;
    } else {
#pragma unroll
      for (int k = 0; k < 4; ++k)
        if (n + k < p.num_states) to[k] = from_float<T>(values[k]);
    }
  }
};

template <typename E, typename Shape>
__global__ void __launch_bounds__(32 * Shape::kMaxWarps, Shape::kResident)
    selective_backward_kernel(const SelectivePlan p) {
  constexpr int kAllStates = Shape::kAllStates;
  constexpr int kStageTiles = Shape::kStageRows / kTileRows, kSumTiles = Shape::kSumRows / kTileRows;
  using Warp = BackwardWarp<E, Shape>;
  const int persistent_block = static_cast<int>(blockIdx.x / p.launch_columns);
  Warp warp(p, p.first_column + static_cast<int>(blockIdx.x % p.launch_columns));
  BackwardBlock<E, Shape> block(p);
  const float* const block_sums =
      warp.sums - static_cast<int>(threadIdx.x) / 32 * Shape::kWarpSize;  // of the first warp
#pragma unroll 1
  for (int slot = persistent_block; slot < p.segments.num_slots; slot += static_cast<int>(p.persistent_blocks)) {
    float d_state[Shape::kChannels][Shape::kStates];
    int first_checkpoint;
    {
      const Segment segment = find_segment(p.segments, slot);
      if (!segment.exists()) continue;
      if (segment.count > 1) {
        warp.load_states(p.segment_states, slot, d_state);
      } else {
        warp.load_states(p.d_final_state, segment.sequence, d_state);
      }
      warp.begin = segment.begin, warp.end = static_cast<int>(segment.end - segment.begin);
      block.staged = -1;
      first_checkpoint = static_cast<int>(first_slot(p.sequences, kChunkRows, segment.sequence) +
                                          segment.index * (p.segments.rows / kChunkRows));
    }
#pragma unroll 1
    for (int row0 = (warp.end - 1) / kChunkRows * kChunkRows; row0 >= 0 && row0 < warp.end; row0 -= kChunkRows) {
      const int tiles = min(kTiles, (warp.end - row0 + kTileRows - 1) / kTileRows);
      const int checkpoint = first_checkpoint + row0 / kChunkRows;
      auto stage_tile = [&](int t) {
        if constexpr (!Shape::kWhole)
          block.enter_stage(row0 + t / kStageTiles * Shape::kStageRows, warp.begin, warp.end);
        return block.stage + t % kStageTiles * kTileRows * kAllStates;
      };
      {
        typename Warp::ChunkRows rows;
        warp.load_chunk(row0, rows);
        if constexpr (Shape::kWhole) block.enter_stage(row0, warp.begin, warp.end);  // loads rows at the same time
        warp.prepare_chunk(rows, row0);
      }
      float state[Shape::kChannels][Shape::kStates];
      typename Warp::Rows rows;
      warp.load_states(p.checkpoints, checkpoint, state);
      warp.load_rows(row0 + (tiles - 1) * kTileRows, rows);
#pragma unroll 1
      for (int t = 0; t + 1 < tiles; ++t) {
        warp.advance(t, stage_tile(t), state);
        if (t + 2 < tiles) warp.keep_state(warp.state_before(t + 1), state);
      }
#pragma unroll 1
      for (int t = tiles - 1;; --t) {
        const float* const B = stage_tile(t);
        const int tile_row0 = row0 + t * kTileRows;
        warp.reverse_tile(rows, t, tile_row0, B, t % kSumTiles * kTileRows, state, d_state, [&] {
          warp.load_rows(max(0, tile_row0 - kTileRows), rows);  // unused after the first tile
        });
        if (t % kSumTiles == 0) block.store_row_gradients(block_sums, tile_row0, warp.begin, warp.end);
        if (t == 0) break;
        if (t > 1) {
          warp.load_kept_state(warp.state_before(t - 1), state);
        } else {
          warp.load_states(p.checkpoints, checkpoint, state);
        }
      }
    }
    if (p.d_initial_state) {
      const Segment segment = find_segment(p.segments, slot);  // finding it again saves registers in the loop
      if (segment.is_first()) {
        float* const quads = warp.state_before(1);
        warp.keep_state(quads, d_state);
        warp.store_states(p.d_initial_state, segment.sequence, quads);
      }
    }
  }
  warp.store_partials(persistent_block);
}

constexpr int kAddThreads = 256;

// Adds the partial sums of d_B and d_C over the columns of a launch. A thread adds one element of a row of [d_B, d_C].
template <typename E>
__global__ void __launch_bounds__(kAddThreads) selective_add_row_partials_kernel(const SelectivePlan p) {
  const int64_t width = 2 * p.num_states, size = p.sequences.num_rows * width;
  const int64_t i = int64_t{blockIdx.x} * kAddThreads + threadIdx.x;
  if (i >= size) return;
  float sum = p.first_column ? p.row_sums[i] : 0.f;
  for (int k = 0; k < p.launch_columns; ++k) sum += p.row_partials[k * size + i];
  if (p.first_column + p.launch_columns < p.backward_columns) {
    p.row_sums[i] = sum;
  } else {
    const int64_t row = i / width, n = i % width;
    const RowMatrix& to = n < p.num_states ? p.d_B : p.d_C;
    static_cast<E*>(to.data)[row * to.stride + n % p.num_states] = from_float<E>(sum);
  }
}

template <typename E>
cudaError_t SelectiveKernels<E>::backward(const SelectivePlan& p, cudaStream_t stream) {
  return dispatch_backward(p.num_states, [&](auto shape) {
    using Shape = decltype(shape);
    static_assert(Shape::kMaxWarps > 0 && Shape::shared_bytes(Shape::kMaxWarps) <= kMaxSharedBytes);
    return launch(selective_backward_kernel<E, Shape>, p.persistent_blocks * p.launch_columns, p.backward_threads,
                  Shape::shared_bytes(p.backward_threads / 32), stream, p);
  });
}

template <typename E>
cudaError_t SelectiveKernels<E>::add_row_partials(const SelectivePlan& p, cudaStream_t stream) {
  return launch(selective_add_row_partials_kernel<E>, ceil_div(p.sequences.num_rows * 2 * p.num_states, kAddThreads),
                kAddThreads, 0, stream, p);
}

}  // namespace recgrela::cuda
