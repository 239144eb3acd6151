// States of keys before each chunk of a segment, for heads of 64 and 128 channels. A forward sweep stores them for the
// backward's reverse sweep.
#pragma once

#include "kernels/gated_rela/wide/gradient_team.cuh"
#include "kernels/gated_rela/wide/lane_tiles.cuh"

namespace recgrela::cuda {

// Tiles of states in memory: 16 bytes a lane, at 16 bits in the order of an operand B's registers.
template <typename E>
__device__ void store_tile_of_state(E* tile, const Acc& a, float factor) {
  if constexpr (sizeof(E) == 4) {
    store_packed(tile, a, factor);
  } else {
    const Operand<E> m = to_operand<E>(a, factor);
    reinterpret_cast<uint4*>(tile)[threadIdx.x % 32] = make_uint4(m.r[0], m.r[2], m.r[1], m.r[3]);
  }
}

// Operand B, M[n][k] = tile[n][k], or tile[k][n] if kTranspose.
template <typename E, bool kTranspose>
__device__ RightSplit<E> load_tile_of_state(const E* tile) {
  const int lane = threadIdx.x % 32;
  if constexpr (sizeof(E) == 4) {
    Acc a;
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const float4 x = reinterpret_cast<const float4*>(tile)[32 * j + lane];
      a.x[j][0] = x.x, a.x[j][1] = x.y, a.x[j][2] = x.z, a.x[j][3] = x.w;
    }
    const Split<E> m = to_split<E>(a);
    return as_right(kTranspose ? transpose(m) : m);
  } else {
    const uint4 r = reinterpret_cast<const uint4*>(tile)[lane];
    if constexpr (kTranspose)
      return {{{{transpose_matrix(r.x), transpose_matrix(r.z)}, {transpose_matrix(r.y), transpose_matrix(r.w)}}}};
    else
      return {{{{r.x, r.y}, {r.z, r.w}}}};
  }
}

// Tiles of a state in the order in which lanes hold them, by value and key channels, and the sums of phi(k).
template <typename E, int kHead>
struct StoredState {
  static constexpr int kTiles = kHead / kTile;
  E* tiles;
  float* sums;

  // State before chunk i of the segment, or of the whole sequence if bidirectional.
  __device__ StoredState(const GradientTeam<E, kHead>& team, int i)
      : tiles(static_cast<E*>(team.segment.chunk_states) + int64_t{team.p.causal ? i : 0} * (kHead * kHead)),
        sums(team.segment.chunk_sums + (team.p.causal ? i : 0) * kHead) {}

  __device__ E* tile(int value, int key) const { return tiles + (value * kTiles + key) * kPackedTile; }

  __device__ void store(const GradientTeam<E, kHead>& team, const Acc (&state)[kTiles], const LaneChannels& sum,
                        float factor) const {
#pragma unroll
    for (int t = 0; t < kTiles; ++t) store_tile_of_state<E>(tile(team.warp, t), state[t], factor);
    if (team.lane < 4) store_channels(sums + team.channel(), sum, factor);
  }
};

// State of keys before a causal segment, or of a whole bidirectional sequence; null: zeros.
template <typename E, int kHead>
__device__ const float* key_state_before(const GradientTeam<E, kHead>& team) {
  const RelaPlan& p = team.p;
  if (!p.causal || team.segment.count > 1) return team.state(p.key_states);
  return p.initial_kv_state ? team.sequence_state(p.initial_kv_state) : nullptr;
}

// Stores the state of keys before each chunk. The rotated keys of a chunk are in one of two matrices in turn, so that
// one barrier a chunk suffices.
template <typename E, int kHead, typename Matrix>
__device__ void store_key_states(const GradientTeam<E, kHead>& team, Matrix& even, Matrix& odd) {
  using T = GradientTeam<E, kHead>;
  const RelaPlan& p = team.p;
  Acc state[T::kTiles];
  LaneChannels sum;
  team.load_state(key_state_before(team), state, sum);
  const int last = p.causal && team.rows() > 0 ? team.chunks() - 1 : 0;
  LaneRows<E> k[T::kRowTiles], v[T::kRowTiles];
  auto load = [&](int i) {
#pragma unroll
    for (int r = 0; r < T::kRowTiles; ++r) {
      const typename T::Chunk chunk(i * T::kRows, T::kRows);
      k[r] = team.template load<Matrices::kK>(chunk, r), v[r] = team.template load<Matrices::kV>(chunk, r);
    }
  };
  if (last > 0) load(0);
  for (int i = 0;; ++i) {
    StoredState<E, kHead>(team, i).store(team, state, sum, team.factor(i));
    if (i == last) break;
    Matrix& matrix = i % 2 ? odd : even;
    Split<E> values[T::kRowTiles];
#pragma unroll
    for (int r = 0; r < T::kRowTiles; ++r) {
      const Acc f = features(k[r], kTile);
      const Acc running = running_sums<E>(to_split<E>(f));
      add_scaled(sum, channels_of_row<kTile - 1>(running), 1.f);
      const LaneAngles angles = team.load_angles({i * T::kRows, T::kRows}, r);
      store_tile<E>(matrix.tile(team.warp, r), rotate<false>(f, angles), team.at);
      values[r] = transpose(to_split(v[r]));
    }
    if (i + 1 < last) load(i + 1);
    __syncthreads();
#pragma unroll
    for (int t = 0; t < T::kTiles; ++t)
#pragma unroll
      for (int r = 0; r < T::kRowTiles; ++r)
        add_product(state[t], values[r], load_right<E, true>(matrix.tile(t, r), team.at));
  }
}

}  // namespace recgrela::cuda
