// selective_scan's forward, and what segments come to from zero in both directions.
#pragma once

#include "kernels/selective_scan/team.cuh"

namespace recgrela::cuda {

constexpr int kForwardRows = 8;  // of a tile

template <int kLanes>
size_t selective_forward_shared(const SelectivePlan& p) {
  return sizeof(float) * (SelectiveTile<kLanes, kForwardRows>::size(p.block_channels));
}

// What the states of a segment come to from zero, and the sum of its steps: of h for kReverse false; of
// k_i = a_i (k_{i+1} + C_i dy_i) from the last row to the first, where dy is the gradient before the gate.
template <typename E, int kLanes, bool kReverse>
__global__ void __launch_bounds__(kForwardThreads, 2) selective_sum_segments(const SelectivePlan p) {
  constexpr int kRows = kForwardRows;
  const SelectiveTeam<E, kLanes> team(p, static_cast<int>(blockIdx.x % p.columns));
  const SelectiveTile<kLanes, kRows> tile(reinterpret_cast<float*>(dynamic_shared()), team.channels);
  const ScanSegment segment = find_segment(p.segments, blockIdx.x / p.columns);
  if (!segment.taken() || (kReverse ? segment.first() : segment.last())) return;
  float a[kThreadStates], state[kThreadStates] = {}, steps = 0.f;
  team.load_states(p.A, 0, a);
#pragma unroll
  for (float& x : a) x *= kLog2E;
  const int64_t tiles = (segment.end - segment.begin + kRows - 1) / kRows;
#pragma unroll 1
  for (int64_t t = 0; t < tiles; ++t) {
    const int64_t row0 = segment.begin + (kReverse ? tiles - 1 - t : t) * kRows;
    team.template each_element<kRows>(row0, segment.end, [&](int r, int64_t at, bool there) {
      const int i = r * team.channels + team.column;
      const float step = there ? team.step_at(at) : 0.f;
      tile.step[i] = step;
      if constexpr (kReverse) {
        tile.grad[i] = there ? team.gated_grad(at) : 0.f;
      } else {
        tile.delta_u[i] = there ? step * team.element(p.u, at) : 0.f;
      }
    });
    team.template load_rows<kRows>(kReverse ? p.C : p.B, row0, segment.end, tile.B);
    __syncthreads();
#pragma unroll 2
    for (int i = 0; i < kRows; ++i) {
      const int r = kReverse ? kRows - 1 - i : i;
      const float step = tile.step[r * team.channels + team.channel()];
      const float x = (kReverse ? tile.grad : tile.delta_u)[r * team.channels + team.channel()];
      float by[kThreadStates];
      team.load_shared(tile.B, r, by);
      steps += step;
#pragma unroll
      for (int s = 0; s < kThreadStates; ++s) {
        const float decay = fast_exp2(step * a[s]);
        state[s] = kReverse ? decay * (state[s] + x * by[s]) : decay * state[s] + x * by[s];
      }
    }
    __syncthreads();
  }
  team.store_states(p.segment_states, segment.slot, state);
  if (team.there() && team.lane() == 0)
    p.segment_steps[segment.slot * p.channels + team.first_channel + team.channel()] = steps;
}

template <typename E, int kLanes>
__global__ void __launch_bounds__(kForwardThreads, 2) selective_forward(const SelectivePlan p) {
  constexpr int kRows = kForwardRows;
  const SelectiveTeam<E, kLanes> team(p, static_cast<int>(blockIdx.x % p.columns));
  const SelectiveTile<kLanes, kRows> tile(reinterpret_cast<float*>(dynamic_shared()), team.channels);
  float* const sums = tile.grad;  // y before skip and gate
  const ScanSegment segment = find_segment(p.segments, blockIdx.x / p.columns);
  if (!segment.taken()) return;
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
  const int64_t sequence_row0 = segment.begin - segment.index * p.segments.rows;
  int64_t number = first_slot(p.sequences, p.kCheckpointRows, segment.sequence) +
                   (segment.begin - sequence_row0) / p.kCheckpointRows;
#pragma unroll 1
  for (int64_t row0 = segment.begin; row0 < segment.end; row0 += kRows) {
    team.template each_element<kRows>(row0, segment.end, [&](int r, int64_t at, bool there) {
      const int i = r * team.channels + team.column;
      const float step = there ? team.step_at(at) : 0.f;
      tile.step[i] = step;
      tile.delta_u[i] = there ? step * team.element(p.u, at) : 0.f;
    });
    team.template load_rows<kRows>(p.B, row0, segment.end, tile.B);
    team.template load_rows<kRows>(p.C, row0, segment.end, tile.C);
    __syncthreads();
    if (p.checkpoints && (row0 - segment.begin) % p.kCheckpointRows == 0)
      team.store_states(p.checkpoints, number++, state);
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
      y = team.sum_of_lanes(y);
      if (team.lane() == 0) sums[r * team.channels + team.channel()] = y;
    }
    __syncthreads();
    team.template each_element<kRows>(row0, segment.end, [&](int r, int64_t at, bool there) {
      if (!there) return;
      float y = sums[r * team.channels + team.column] + team.of_channel(p.D) * team.element(p.u, at);
      if (p.z.data) {
        const float z = team.element(p.z, at);
        y *= z * sigmoid(z);
      }
      team.put_element(p.y, at, y);
    });
  }
  if (segment.last() && p.final_state) team.store_states(p.final_state, segment.sequence, state);
}

template <typename E>
cudaError_t SelectiveKernels<E>::sum_segments(const SelectivePlan& p, bool reverse, cudaStream_t stream) {
  return with_lanes(p.num_states, [&](auto lanes) {
    constexpr int kLanes = decltype(lanes)::value;
    return launch(reverse ? selective_sum_segments<E, kLanes, true> : selective_sum_segments<E, kLanes, false>,
                  p.segments.slots * p.columns, p.threads, selective_forward_shared<kLanes>(p), stream, p);
  });
}

template <typename E>
cudaError_t SelectiveKernels<E>::forward(const SelectivePlan& p, cudaStream_t stream) {
  return with_lanes(p.num_states, [&](auto lanes) {
    constexpr int kLanes = decltype(lanes)::value;
    return launch(selective_forward<E, kLanes>, p.segments.slots * p.columns, p.threads,
                  selective_forward_shared<kLanes>(p), stream, p);
  });
}

}  // namespace recgrela::cuda
