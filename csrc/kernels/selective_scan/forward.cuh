// Forward of selective_scan, and the final states of segments that start from zero, in both directions.
#pragma once

#include "kernels/selective_scan/team.cuh"

namespace recgrela::cuda {

constexpr int kForwardRows = 8;  // of a tile

template <int kLanes>
size_t selective_forward_shared(const SelectivePlan& p) {
  return sizeof(float) * (SelectiveTile<kLanes, kForwardRows>::size(p.block_channels));
}

// Computes the final state of a segment that starts from a zero state, and the sum of its steps. kReverse does so for
// the gradient k_i = a_i (k_{i+1} + C_i d_y_i), from the last row to the first, where a_i = exp(d_i A) is the decay and
// d_y the gradient before the gate.
template <typename E, int kLanes, bool kReverse>
__global__ void __launch_bounds__(kForwardThreads, 2) selective_sum_segments_kernel(const SelectivePlan p) {
  constexpr int kRows = kForwardRows;
  const SelectiveTeam<E, kLanes> team(p, static_cast<int>(blockIdx.x % p.columns));
  const SelectiveTile<kLanes, kRows> tile(reinterpret_cast<float*>(dynamic_shared()), team.channels);
  const Segment segment = find_segment(p.segments, blockIdx.x / p.columns);
  if (!segment.exists() || (kReverse ? segment.is_first() : segment.is_last())) return;
  float a[kThreadStates], state[kThreadStates] = {}, steps = 0.f;
  team.load_states(p.A, 0, a);
#pragma unroll
  for (float& x : a) x *= kLog2E;
  const int64_t tiles = (segment.end - segment.begin + kRows - 1) / kRows;
#pragma unroll 1
  for (int64_t t = 0; t < tiles; ++t) {
    const int64_t row0 = segment.begin + (kReverse ? tiles - 1 - t : t) * kRows;
    team.template for_each_element<kRows>(row0, segment.end, [&](int r, int64_t row, bool valid) {
      const int i = r * team.channels + team.column;
      const float step = valid ? team.load_step(row) : 0.f;
      tile.step[i] = step;
      if constexpr (kReverse) {
        tile.grad[i] = valid ? team.load_ungated_grad(row) : 0.f;
      } else {
        tile.delta_u[i] = valid ? step * team.load_element(p.u, row) : 0.f;
      }
    });
    team.template load_rows<kRows>(kReverse ? p.C : p.B, row0, segment.end, tile.B);
    __syncthreads();
#pragma unroll 2
    for (int i = 0; i < kRows; ++i) {
      const int r = kReverse ? kRows - 1 - i : i;
      const float step = tile.step[r * team.channels + team.channel()];
      const float x = (kReverse ? tile.grad : tile.delta_u)[r * team.channels + team.channel()];
      float weight[kThreadStates];  // C or B
      team.load_shared(tile.B, r, weight);
      steps += step;
#pragma unroll
      for (int s = 0; s < kThreadStates; ++s) {
        const float decay = fast_exp2(step * a[s]);
        state[s] = kReverse ? decay * (state[s] + x * weight[s]) : decay * state[s] + x * weight[s];
      }
    }
    __syncthreads();
  }
  team.store_states(p.segment_states, segment.slot, state);
  if (team.in_range() && team.lane() == 0)
    p.segment_steps[segment.slot * p.channels + team.first_channel + team.channel()] = steps;
}

template <typename E, int kLanes>
__global__ void __launch_bounds__(kForwardThreads, 2) selective_forward_kernel(const SelectivePlan p) {
  constexpr int kRows = kForwardRows;
  check_sequences(p.sequences);
  const SelectiveTeam<E, kLanes> team(p, static_cast<int>(blockIdx.x % p.columns));
  const SelectiveTile<kLanes, kRows> tile(reinterpret_cast<float*>(dynamic_shared()), team.channels);
  float* const sums = tile.grad;  // y before D u and the gate are applied
  const Segment segment = find_segment(p.segments, blockIdx.x / p.columns);
  if (!segment.exists()) return;
  float a[kThreadStates], state[kThreadStates];
  team.load_states(p.A, 0, a);
#pragma unroll
  for (float& x : a) x *= kLog2E;
  if (segment.count > 1) {
    team.load_states(p.segment_states, segment.slot, state);
  } else {
    team.load_states(p.initial_state, segment.sequence, state);
  }
  // Segments begin at multiples of kCheckpointRows in their sequence.
  int64_t checkpoint = first_slot(p.sequences, p.kCheckpointRows, segment.sequence) +
                       (segment.begin - segment.sequence_begin) / p.kCheckpointRows;
#pragma unroll 1
  for (int64_t row0 = segment.begin; row0 < segment.end; row0 += kRows) {
    team.template for_each_element<kRows>(row0, segment.end, [&](int r, int64_t row, bool valid) {
      const int i = r * team.channels + team.column;
      const float step = valid ? team.load_step(row) : 0.f;
      tile.step[i] = step;
      tile.delta_u[i] = valid ? step * team.load_element(p.u, row) : 0.f;
    });
    team.template load_rows<kRows>(p.B, row0, segment.end, tile.B);
    team.template load_rows<kRows>(p.C, row0, segment.end, tile.C);
    __syncthreads();
    if (p.checkpoints && (row0 - segment.begin) % p.kCheckpointRows == 0)
      team.store_states(p.checkpoints, checkpoint++, state);
#pragma unroll 2
    for (int r = 0; r < kRows; ++r) {
      const float step = tile.step[r * team.channels + team.channel()];
      const float delta_u = tile.delta_u[r * team.channels + team.channel()];
      float b[kThreadStates], c[kThreadStates], y = 0.f;
      team.load_shared(tile.B, r, b);
      team.load_shared(tile.C, r, c);
#pragma unroll
      for (int s = 0; s < kThreadStates; ++s) {
        state[s] = fast_exp2(step * a[s]) * state[s] + delta_u * b[s];
        y += c[s] * state[s];
      }
      y = team.lane_sum(y);
      if (team.lane() == 0) sums[r * team.channels + team.channel()] = y;
    }
    __syncthreads();
    team.template for_each_element<kRows>(row0, segment.end, [&](int r, int64_t row, bool valid) {
      if (!valid) return;
      float y = sums[r * team.channels + team.column] + team.load_channel(p.D) * team.load_element(p.u, row);
      if (p.z.data) {
        const float z = team.load_element(p.z, row);
        y *= z * sigmoid(z);
      }
      team.store_element(p.y, row, y);
    });
  }
  if (segment.is_last() && p.final_state) team.store_states(p.final_state, segment.sequence, state);
}

template <typename E>
cudaError_t SelectiveKernels<E>::sum_segments(const SelectivePlan& p, bool reverse, cudaStream_t stream) {
  return dispatch_lanes(p.num_states, [&](auto lanes) {
    constexpr int kLanes = decltype(lanes)::value;
    return launch(
        reverse ? selective_sum_segments_kernel<E, kLanes, true> : selective_sum_segments_kernel<E, kLanes, false>,
        p.segments.num_slots * p.columns, p.threads, selective_forward_shared<kLanes>(p), stream, p);
  });
}

template <typename E>
cudaError_t SelectiveKernels<E>::forward(const SelectivePlan& p, cudaStream_t stream) {
  return dispatch_lanes(p.num_states, [&](auto lanes) {
    constexpr int kLanes = decltype(lanes)::value;
    return launch(selective_forward_kernel<E, kLanes>, p.segments.num_slots * p.columns, p.threads,
                  selective_forward_shared<kLanes>(p), stream, p);
  });
}

}  // namespace recgrela::cuda
