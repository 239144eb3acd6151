// States of keys before each chunk of a segment. A forward sweep stores them for the backward's reverse sweep.
#pragma once

#include "kernels/gated_rela/key_sums.cuh"

namespace recgrela::cuda {

// State of one chunk in the team's workspace.
template <typename E, int kHead>
struct ChunkState {
  static constexpr int kTiles = Team<E, kHead>::kTiles;
  E* tiles;
  float* sums;

  // State before chunk i of the segment, or of the whole sequence if bidirectional.
  __device__ ChunkState(const Team<E, kHead>& team, int i) {
    if (!team.p.causal) i = 0;
    tiles = static_cast<E*>(team.segment.chunk_states) + int64_t{i} * (kTiles * kTiles * kPackedTile);
    sums = team.segment.chunk_sums + i * kHead;
  }
  __device__ E* tile(int value, int key) const { return tiles + (value * kTiles + key) * kPackedTile; }

  __device__ void store(const Team<E, kHead>& team, const Acc (&state)[kTiles], const RowVector& sum, float factor) {
#pragma unroll
    for (int t = 0; t < kTiles; ++t) store_packed(tile(team.warp, t), state[t], factor);
    team.publish(sums, sum, factor);
  }
};

// Stores the state of keys before each chunk.
template <typename E, int kHead>
__device__ void store_key_states(const Team<E, kHead>& team, KeySumsMemory<E, kHead>& memory) {
  Acc state[Team<E, kHead>::kTiles];
  RowVector sum;
  team.load_state(state_before(team), state);
  team.load_sum(state_before(team), sum);
  const int last = team.p.causal && team.rows() > 0 ? team.chunks() - 1 : 0;
  auto store = [&](int i) { ChunkState<E, kHead>(team, i).store(team, state, sum, fast_reciprocal(team.num_keys(i))); };
  if (last > 0) sweep_keys(team, memory, 1, state, sum, store);
  store(last);
}

}  // namespace recgrela::cuda
