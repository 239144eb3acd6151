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

// Tiles of a state in the order in which lanes hold them, by value and key channels, and the sums of phi(k) before each
// row tile of the chunk.
template <typename E, int kHead>
struct StoredState {
  using T = GradientTeam<E, kHead>;
  E* tiles;
  float* sums;  // the warp's

  // State before chunk i of the segment, or of the whole sequence if bidirectional.
  __device__ StoredState(const T& team, int i) {
    if (!team.p.causal) i = 0;
    tiles = static_cast<E*>(team.segment.chunk_states) + int64_t{i} * (kHead * kHead);
    sums = team.segment.chunk_sums + (i * T::kRowTiles + team.row_tile) * kHead + team.channel();
  }

  __device__ E* tile(int value, int key) const { return tiles + (value * T::kTiles + key) * kPackedTile; }

  __device__ void store(const T& team, const Acc (&state)[T::kKeyTiles], float factor) const {
#pragma unroll
    for (int t = 0; t < T::kKeyTiles; ++t)
      store_tile_of_state<E>(tile(team.channel_tile, team.first_key_tile() + t), state[t], factor);
  }
};

// State of keys before a causal segment, or of a whole bidirectional sequence; null: zeros.
template <typename E, int kHead>
__device__ const float* key_state_before(const GradientTeam<E, kHead>& team) {
  const RelaPlan& p = team.p;
  if (!p.causal || team.segment.count > 1) return team.state(p.key_states);
  return p.initial_kv_state ? team.sequence_state(p.initial_kv_state) : nullptr;
}

// Stores the state of keys before each chunk. The rotated keys of a chunk, and its values, are in one of two pairs of
// matrices in turn, so that one barrier a chunk suffices; so are the sums of phi(k) over row tiles, in `by_row`.
template <typename E, int kHead, typename Memory>
__device__ void store_key_states(const GradientTeam<E, kHead>& team, Memory& m) {
  using T = GradientTeam<E, kHead>;
  const RelaPlan& p = team.p;
  Acc state[T::kKeyTiles];
  LaneChannels sum;  // before the chunk
  team.load_state(key_state_before(team), state, sum);
  const int last = p.causal && team.rows() > 0 ? team.chunks() - 1 : 0;
  LaneRows<E> k, v;
  // The last chunk's keys are needed only for the sums before its second row tile.
  auto needs_keys = [&](int i) { return i < last || (T::kRowTiles > 1 && p.causal && team.rows() > 0); };
  auto load = [&](int i) {
    const typename T::Chunk chunk = team.chunk(i);
    k = team.template load<Matrices::kK>(chunk);
    v = team.template load<Matrices::kV>(chunk);
  };
  if (needs_keys(0)) load(0);
  for (int i = 0;; ++i) {
    const StoredState<E, kHead> stored(team, i);
    stored.store(team, state, team.factor(i));
    const typename T::Chunk chunk = team.chunk(i);
    Acc f;
    LaneChannels own;  // sum over the warp's rows
    if (needs_keys(i)) {
      f = features(k, team.rest(chunk));
      own = channels_of_row<kTile - 1>(running_sums<E>(to_split<E>(f)));
    }
    if (team.lane < 4) {
      // The first warp of the channels stores the sums before the next row tile too, which follow its own rows.
      static_assert(T::kRowTiles <= 2);
      if (team.row_tile == 0) {
        store_channels(stored.sums, sum, team.factor(i));
        LaneChannels next = sum;
        add_scaled(next, own, 1.f);
        if (T::kRowTiles > 1) store_channels(stored.sums + kHead, next, team.factor(i));
      }
      if (T::kRowTiles > 1) store_channels(m.by_row[i % 2][team.row_tile] + team.channel(), own, 1.f);
    }
    if (i == last) break;
    auto& keys = i % 2 ? m.k : m.q;
    auto& values = i % 2 ? m.a : m.v;
    const LaneAngles angles = team.load_angles(chunk);
    store_tile<E>(keys.tile(team.channel_tile, team.row_tile), rotate<false>(f, angles), team.at);
    store_split<E>(values.tile(team.channel_tile, team.row_tile), to_split(v), team.at);
    load(i + 1);
    __syncthreads();
    if constexpr (T::kRowTiles == 1) {
      add_scaled(sum, own, 1.f);
    } else {
#pragma unroll
      for (int r = 0; r < T::kRowTiles; ++r) add_scaled(sum, load_channels(m.by_row[i % 2][r] + team.channel()), 1.f);
    }
    Split<E> operands[T::kRowTiles];
#pragma unroll
    for (int r = 0; r < T::kRowTiles; ++r) operands[r] = load_left<E, true>(values.tile(team.channel_tile, r), team.at);
#pragma unroll
    for (int t = 0; t < T::kKeyTiles; ++t)
#pragma unroll
      for (int r = 0; r < T::kRowTiles; ++r)
        add_product(state[t], operands[r], load_right<E, true>(keys.tile(team.first_key_tile() + t, r), team.at));
  }
}

}  // namespace recgrela::cuda
