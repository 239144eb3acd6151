// Backward of selective_scan: chunks of 32 rows from the last to the first, each from the checkpoint before it.
//
// A chunk is processed in tiles of 4 rows. A first pass computes the state before each tile. A second pass goes through
// the tiles in reverse: it recomputes the decays a_i and the states after each row, keeps them in registers, and then
// goes through the rows in reverse with k_i = a_i g_i, where g_i = d_y_i C_i + k_{i+1} and d_y is the gradient before
// the gate.
#pragma once

#include "kernels/selective_scan/backward_team.cuh"

namespace recgrela::cuda {

// Blocks per multiprocessor for which the registers suffice without spilling.
template <int kLanes>
constexpr int kBackwardBlocks = kLanes < 8 ? 3 : 2;

template <typename E, int kLanes>
__global__ void __launch_bounds__(kBackwardThreads, kBackwardBlocks<kLanes>)
    selective_backward_kernel(const SelectivePlan p) {
  constexpr int kRows = kBackwardRows, kChunk = SelectiveScanParams::kCheckpointRows, kTiles = kChunk / kRows;
  const int column = p.first_column + static_cast<int>(blockIdx.x % p.launch_columns);
  const int persistent_block = static_cast<int>(blockIdx.x / p.launch_columns);
  BackwardTeam<E, kLanes> team(p, column);
#pragma unroll 1
  for (int slot = persistent_block; slot < p.segments.num_slots; slot += static_cast<int>(p.persistent_blocks)) {
    float d_state[kThreadStates];
    int64_t row0, end;
    int chunks, checkpoint;  // checkpoint: index of the checkpoint after the chunk
    {
      const Segment segment = find_segment(p.segments, slot);
      if (!segment.exists()) continue;
      if (segment.count > 1) {
        team.load_states(p.segment_states, slot, d_state);
      } else {
        team.load_states(p.d_final_state, segment.sequence, d_state);
      }
      end = segment.end;
      chunks = static_cast<int>((end - segment.begin + kChunk - 1) / kChunk);
      row0 = segment.begin + int64_t{chunks} * kChunk;
      checkpoint = static_cast<int>(first_slot(p.sequences, kChunk, segment.sequence) +
                                    segment.index * (p.segments.rows / kChunk)) +
                   chunks;
    }
    int tiles = static_cast<int>(kTiles - (row0 - end) / kRows);
#pragma unroll 1
    for (; chunks > 0; --chunks, tiles = kTiles) {
      row0 -= kChunk, checkpoint -= 1;
      float state[kThreadStates];
      team.load_states(p.checkpoints, checkpoint, state);
      team.put(team.states_before(0), state);
#pragma unroll 1
      for (int t = 0; t + 1 < tiles; ++t) {
        team.template prepare<false>(row0 + t * kRows, end);
        __syncthreads();
        team.advance(state);
        team.put(team.states_before(t + 1), state);
        __syncthreads();
      }
#pragma unroll 1
      for (int t = tiles - 1; t >= 0; --t) {
        team.template prepare<true>(row0 + t * kRows, end);
        __syncthreads();
        team.reverse_tile(team.states_before(t), d_state);
        __syncthreads();
        team.store_gradients(row0 + t * kRows, end);
      }
    }
    if (p.d_initial_state) {
      const Segment segment = find_segment(p.segments, slot);  // finding it again saves registers in the loop
      if (segment.is_first()) team.store_states(p.d_initial_state, segment.sequence, d_state);
    }
  }
  team.store_partials(persistent_block);
}

// Adds the partial sums of d_B and d_C over the columns of a launch. A thread adds one element of a row of [d_B, d_C].
template <typename E>
__global__ void __launch_bounds__(kForwardThreads) selective_add_row_partials_kernel(const SelectivePlan p) {
  const int64_t width = 2 * p.num_states, size = p.sequences.num_rows * width;
  const int64_t i = int64_t{blockIdx.x} * kForwardThreads + threadIdx.x;
  if (i >= size) return;
  float sum = p.first_column ? p.row_sums[i] : 0.f;
  for (int k = 0; k < p.launch_columns; ++k) sum += p.row_partials[k * size + i];
  if (p.first_column + p.launch_columns < p.columns) {
    p.row_sums[i] = sum;
  } else {
    const int64_t row = i / width, n = i % width;
    const RowMatrix& to = n < p.num_states ? p.d_B : p.d_C;
    static_cast<E*>(to.data)[row * to.stride + n % p.num_states] = from_float<E>(sum);
  }
}

template <typename E>
cudaError_t SelectiveKernels<E>::backward(const SelectivePlan& p, cudaStream_t stream) {
  return dispatch_lanes(p.num_states, [&](auto lanes) {
    constexpr int kLanes = decltype(lanes)::value;
    return launch(selective_backward_kernel<E, kLanes>, p.persistent_blocks * p.launch_columns, p.threads,
                  BackwardShared<kLanes>::bytes(p.block_channels), stream, p);
  });
}

template <typename E>
cudaError_t SelectiveKernels<E>::add_row_partials(const SelectivePlan& p, cudaStream_t stream) {
  return launch(selective_add_row_partials_kernel<E>,
                ceil_div(p.sequences.num_rows * 2 * p.num_states, kForwardThreads), kForwardThreads, 0, stream, p);
}

}  // namespace recgrela::cuda
