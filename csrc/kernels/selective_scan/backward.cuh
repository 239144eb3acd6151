// Backward of selective_scan: chunks of 32 rows from the last to the first, each from the checkpoint before it.
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
  const int column;  // of the launch
  int staged = -1;   // first row in the stage

  __device__ BackwardBlock(const SelectivePlan& p, int column)
      : p(p), stage(reinterpret_cast<float*>(dynamic_shared())), column(column) {}

  // Stages rows of a segment, which is at `begin` and has `end` rows, from `row0` on, unless they are; zeros for rows
  // from `end` on and states that do not exist.
  __device__ void enter_stage(int row0, int64_t begin, int end) {
    if (row0 == staged) return;
    staged = row0;
    __syncthreads();
#pragma unroll 2
    for (int i = computed_here(threadIdx.x); i < 2 * Shape::kStageRows * kQuads; i += p.backward_threads) {
      const RowMatrix& rows = i < Shape::kStageRows * kQuads ? p.B : p.C;
      const int r = i / kQuads % Shape::kStageRows, n = i % kQuads * 4;
      const E* const from = static_cast<const E*>(rows.data) + (begin + row0 + r) * rows.stride + n;
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

  // Adds the gradients of B and C over the warps, for rows from `row0` on, and stores them.
  __device__ void store_row_gradients(const float* sums, int row0, int64_t begin, int end) const {
    const int warps = p.backward_threads / 32;
    __syncthreads();
    for (int i = 2 * computed_here(threadIdx.x); i < Shape::kSumRows * 2 * kAllStates; i += 2 * p.backward_threads) {
      float sum[2];
      load_floats<2>(sums + i, sum);
#pragma unroll
      for (int w = 1; w < Shape::kMaxWarps; ++w) {
        if (w >= warps) break;
        float pair[2];
        load_floats<2>(sums + w * Shape::kWarpSize + i, pair);
        sum[0] += pair[0], sum[1] += pair[1];
      }
      const int row = row0 + i / (2 * kAllStates), kind = i / kAllStates % 2, n = i % kAllStates;
      if (row >= end) continue;
      if (p.row_partials) {
        float* const to =
            p.row_partials + ((column * p.sequences.num_rows + begin + row) * 2 + kind) * p.num_states + n;
        if (n < p.num_states) to[0] = sum[0];
        if (n + 1 < p.num_states) to[1] = sum[1];
      } else {
        const RowMatrix& rows = kind ? p.d_C : p.d_B;
        E* const to = static_cast<E*>(rows.data) + (begin + row) * rows.stride + n;
        if (n < p.num_states) to[0] = from_float<E>(sum[0]);
        if (n + 1 < p.num_states) to[1] = from_float<E>(sum[1]);
      }
    }
    __syncthreads();
  }
};

template <typename E, typename Shape>
__global__ void __launch_bounds__(32 * Shape::kMaxWarps, RECGRELA_SELECTIVE_SCAN_BACKWARD_CHANNELS == 2 ? 3 : 2)
    selective_backward_kernel(const SelectivePlan p) {
  constexpr int kChunk = SelectiveScanParams::kCheckpointRows, kAllStates = Shape::kAllStates;
  constexpr int kStageTiles = Shape::kStageRows / kTileRows, kSumTiles = Shape::kSumRows / kTileRows;
  using Warp = BackwardWarp<E, Shape>;
  const int column = static_cast<int>(blockIdx.x % p.launch_columns);
  const int persistent_block = static_cast<int>(blockIdx.x / p.launch_columns);
  Warp warp(p, p.first_column + column);
  BackwardBlock<E, Shape> block(p, column);
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
      first_checkpoint = static_cast<int>(first_slot(p.sequences, kChunk, segment.sequence) +
                                          segment.index * (p.segments.rows / kChunk));
    }
#pragma unroll 1
    for (int row0 = (warp.end + kChunk - 1) / kChunk * kChunk - kChunk; row0 >= 0; row0 -= kChunk) {
      const int tiles = min(kChunk / kTileRows, (warp.end - row0 + kTileRows - 1) / kTileRows);
      const int checkpoint = first_checkpoint + row0 / kChunk;
      auto stage_tile = [&](int t) {
        block.enter_stage(row0 + t / kStageTiles * Shape::kStageRows, warp.begin, warp.end);
        return block.stage + t % kStageTiles * kTileRows * kAllStates;
      };
      float state[Shape::kChannels][Shape::kStates];
      typename Warp::Rows rows;
      warp.load_states(p.checkpoints, checkpoint, state);
      if (tiles > 1) warp.template load_rows<false>(row0, rows);
#pragma unroll 1
      for (int t = 0; t + 1 < tiles; ++t) {
        const float* const B = stage_tile(t);
        typename Warp::Factors unused;
        warp.template prepare<false>(rows, row0 + t * kTileRows, unused);
        if (t + 2 < tiles) warp.template load_rows<false>(row0 + (t + 1) * kTileRows, rows);
        warp.advance(B, state);
        if (t + 2 < tiles) warp.keep_state(warp.state_before(t + 1), state);
      }
      warp.template load_rows<true>(row0 + (tiles - 1) * kTileRows, rows);
#pragma unroll 1
      for (int t = tiles - 1; t >= 0; --t) {
        if (t + 1 < tiles) {
          if (t > 0) {
            warp.load_kept_state(warp.state_before(t), state);
          } else {
            warp.load_states(p.checkpoints, checkpoint, state);
          }
        }
        const float* const B = stage_tile(t);
        const int tile_row0 = row0 + t * kTileRows;
        warp.reverse_tile(rows, tile_row0, B, t % kSumTiles * kTileRows, state, d_state, [&] {
          warp.template load_rows<true>(max(0, tile_row0 - kTileRows), rows);  // unused after the first tile
        });
        if (t % kSumTiles == 0) block.store_row_gradients(block_sums, tile_row0, warp.begin, warp.end);
      }
    }
    if (p.d_initial_state) {
      const Segment segment = find_segment(p.segments, slot);  // finding it again saves registers in the loop
      if (segment.is_first()) warp.store_states(p.d_initial_state, segment.sequence, d_state);
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
