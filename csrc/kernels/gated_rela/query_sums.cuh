// Sums over the queries and gradients of a segment, for the segments before it (causal) or all of its sequence
// (bidirectional).
#pragma once

#include "kernels/gated_rela/key_states.cuh"

namespace recgrela::cuda {

// Computes the gradients of the numerator and the denominator from a, the gradient of the attention's output o.
//
// Args:
//   inverse        n / denominator of each row
//   u              receives kRange n u = kRange n a / denominator, a tile; zeros after the sequence's end
//   d_denominator  receives n d(denominator) = -n (a . o) / denominator, [16]
//
// Both are readable after a barrier.
template <typename E, int kHead>
__device__ void scale_gradient(const Team<E, kHead>& team, Acc a, const Acc& o, const RowPair& inverse, E* u,
                               float* d_denominator, RowSums<E, kHead>& sums) {
  RowPair d = sums.put(team, a, o);
  if constexpr (Team<E, kHead>::kWarps > 1) team.sync();
  d = sums.get(team, d);
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    d.x[h] *= -inverse.x[h];
    if (team.warp == 0 && team.lane % 4 == 0) d_denominator[team.lane / 4 + 8 * h] = d.x[h];
  }
  scale_rows(a, inverse);
  scale(a, kRange<E, kHead>);
  team.store_pairs(u, a);
}

// Adds R phi(q) (x) u of a chunk to the state of queries, by own value channels; `gradients` is the operand u^T.
template <typename E, int kHead, typename F>
__device__ void add_queries(const F& q, const Operand<E>& gradients, float factor,
                            Acc (&state)[Team<E, kHead>::kTiles]) {
  using T = Team<E, kHead>;
#pragma unroll
  for (int t = 0; t < T::kTiles; ++t) {
    limit_overlap<E, (T::kTiles > 2)>();
    Acc part;
    mma<true>(part, gradients, load_operand<E, true>(q.rotated + t * kTile, T::kStride));
    add_scaled(state[t], part, factor / kRange<E, kHead>);
  }
}

template <typename E, int kHead>
struct QuerySumsMemory {
  using T = Team<E, kHead>;
  struct alignas(16) Stage {
    E q[T::kTileSize], k[T::kTileSize], v[T::kTileSize], g[T::kTileSize], d_y[T::kTileSize];
  };
  RelaSegment segment;
  union {
    struct {
      Stage stages[T::kStages];
      E fq[T::kTileSize], fk[T::kTileSize];
      alignas(16) float d_denominator[kTile];
      RowSums<E, kHead> denominators, dots;
    };
    KeySumsMemory<E, kHead> keys;  // for the sweep over keys, before the sweep over queries
  };
};

template <typename E, int kHead>
__device__ void sum_queries(const Team<E, kHead>& team, QuerySumsMemory<E, kHead>& memory) {
  using T = Team<E, kHead>;
  const RelaPlan& p = team.p;
  Acc state[T::kTiles];
  RowVector sum;
  Sources<E, kHead> from;
  from.find(team, 0);
  const float* angle = find_angle(team, 0);
  const int rows = team.rows();
  auto copy = [&](int i, int stage) {
    auto& m = memory.stages[stage];
    const int n = rows - i * kTile;
    team.copy_chunk(m.q, from.q, p.q, n);
    if (p.causal) team.copy_chunk(m.k, from.k, p.k, n), team.copy_chunk(m.v, from.v, p.v, n);
    if (p.g.data) team.copy_chunk(m.g, from.g, p.g, n);
    team.copy_chunk(m.d_y, from.d_y, p.d_y, n);
    from.move(team, 1);
  };
  auto use = [&](int i, int stage) {
    auto& m = memory.stages[stage];
    const int n = rows - i * kTile;
    const Angles angles = load_angles(team, angle, n);
    Features<E, kHead> queries, keys;
    const Acc plain = make_features(team, queries, m.q, memory.fq, angles, n);
    if (p.causal) make_features(team, keys, m.k, memory.fk, angles, n);
    const float num_keys = team.num_keys(i), factor = fast_reciprocal(num_keys);
    const ChunkState<E, kHead> key_state(team, i);
    __syncwarp();
    const RowVector key_sum = team.row_vector(key_state.sums + team.own());
    RowPair denominator = memory.denominators.put(team, plain, with_state(running_keys(team, keys), key_sum, factor));
    team.sync();
    denominator = memory.denominators.get(team, denominator);
    RowPair inverse;
    const Acc o = attend<false>(
        team, n, num_keys, denominator, queries, keys, m.v,
        [&](int t) { return load_packed<E, false>(key_state.tile(team.warp, t)); }, inverse,
        [](int, const Operand<E>&) {});
    Acc a;
    team.load_pairs(a, m.d_y);
    if (p.g.data) {
      Acc gate;
      team.load_pairs(gate, m.g);
      a = gated(a, gate);
    }
    scale_gradient(team, a, o, inverse, m.d_y, memory.d_denominator, memory.dots);
    team.sync();
    add_queries<E, kHead>(queries, load_operand<E, true>(m.d_y + team.own(), T::kStride), factor, state);
    add_weighted(sum, team.row_vector(memory.d_denominator),
                 load_operand<E, true>(queries.plain + team.own(), T::kStride), factor);
    if (angle) angle += kTile * static_cast<int>(p.width());
  };
  pipeline(team, team.chunks(), copy, use);
  float* const out = team.state(p.query_states);
  team.store_state(out, state);
  team.store_sum(out, sum);
}

template <typename E, int kHead>
__global__ void __launch_bounds__(Team<E, kHead>::kThreads, Team<E, kHead>::kBackwardBlocks)
    rela_query_sums_kernel(const RelaPlan p) {
  using T = Team<E, kHead>;
  auto& memory = team_memory<QuerySumsMemory<E, kHead>, T>();
  T team(p, memory.segment);
  if (!team.find_segment(memory.segment)) return;
  if (p.causal && team.segment.is_first()) return;  // no segment comes before it
  store_key_states(team, memory.keys);
  team.sync();
  sum_queries(team, memory);
}

}  // namespace recgrela::cuda
