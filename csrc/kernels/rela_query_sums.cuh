// The sums over a segment's queries and gradients that the backward needs for those before it or, in the bidirectional
// form, for all.
#pragma once

#include "kernels/rela_key_states.cuh"

namespace recgrela::cuda {

// The sum over the own channels of this lane's rows to that over all of the head's. row_sums: [kWarps, 16].
template <typename E, int kHead>
__device__ RowPair sum_of_rows(const Team<E, kHead>& team, const Acc& a, const Acc& b, float* row_sums) {
  constexpr int kWarps = Team<E, kHead>::kWarps;
  RowPair dot;
#pragma unroll
  for (int i = 0; i < 8; ++i) dot.x[i / 2 % 2] += a.x[i / 4][i % 4] * b.x[i / 4][i % 4];
#pragma unroll
  for (int h = 0; h < 2; ++h) dot.x[h] = quad_sum(dot.x[h]);
  if constexpr (kWarps > 1) {
    const int row = team.lane / 4;
    if (team.lane % 4 == 0) {
      row_sums[team.warp * kTile + row] = dot.x[0];
      row_sums[team.warp * kTile + row + 8] = dot.x[1];
    }
    team.sync();
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      dot.x[h] = 0.f;
#pragma unroll 1
      for (int w = 0; w < kWarps; ++w) dot.x[h] += row_sums[w * kTile + row + 8 * h];
    }
  }
  return dot;
}

// From a = dy through the gate and the attention's output o, with n / denominator: u n = a n / denominator to the tile
// `u`, and n d(denominator) of each row to d_denominator, [16]. Both are there after a barrier; rows behind the
// sequence's end are zero, as a is.
template <typename E, int kHead>
__device__ RowPair scale_gradient(const Team<E, kHead>& team, Acc a, const Acc& o, const RowPair& inverse, E* u,
                                  float* d_denominator, float* row_sums) {
  RowPair d = sum_of_rows(team, a, o, row_sums);
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    d.x[h] *= -inverse.x[h];
    if (team.warp == 0 && team.lane % 4 == 0) d_denominator[team.lane / 4 + 8 * h] = d.x[h];
  }
  scale_rows(a, inverse);
  team.store_pairs(u, a);
  return d;
}

// Adds a chunk's R phi(q) (x) u to their state of own value channels; `gradients` is the operand u^T of those.
template <typename E, int kHead, typename F>
__device__ void add_queries(const F& q, const Operand<E>& gradients, float factor,
                            Acc (&state)[Team<E, kHead>::kTiles]) {
  using T = Team<E, kHead>;
#pragma unroll
  for (int t = 0; t < T::kTiles; ++t) {
    limit_overlap<E, (T::kTiles > 2)>();
    Acc part;
    mma(part, gradients, load_operand<E, true>(q.rotated_tile + t * kTile, T::kStride));
    add_scaled(state[t], part, factor);
  }
}
// And n d(denominator) phi(q) to their sum, of own key channels.
template <typename E, int kHead, typename F>
__device__ void add_query_sum(const Team<E, kHead>& team, const F& q, const float* d_denominator, float factor,
                              RowVector& sum) {
  add_weighted(sum, team.row_vector(d_denominator),
               load_operand<E, true>(q.plain_tile + team.own(), Team<E, kHead>::kStride), factor);
}

template <typename E, int kHead>
struct QuerySumsMemory {
  using T = Team<E, kHead>;
  struct alignas(16) Stage {
    E q[T::kTileSize], k[T::kTileSize], v[T::kTileSize], g[T::kTileSize], dy[T::kTileSize];
  };
  Segment segment;
  union {
    struct {
      Stage stages[T::kStages];
      E fq[T::kTileSize], fk[T::kTileSize];
      float d_denominator[kTile], row_sums[T::kWarps * kTile];
    };
    KeySumsMemory<E, kHead> keys;  // of the sweep before
  };
};

template <typename E, int kHead>
__global__ void __launch_bounds__(Team<E, kHead>::kThreads, Team<E, kHead>::kBackwardBlocks)
    query_sums_kernel(const RelaPlan p) {
  using T = Team<E, kHead>;
  auto& memory = team_memory<QuerySumsMemory<E, kHead>, T>();
  T team(p, memory.segment);
  if (!team.find_work(memory.segment)) return;
  const Segment& segment = team.segment;
  store_key_states(team, memory.keys);
  team.sync();
  if (p.causal && segment.index == 0) return;  // nobody comes before these queries

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
    team.copy_chunk(m.dy, from.dy, p.dy, n);
    from.move(team, 1);
  };
  auto use = [&](int i, int stage) {
    auto& m = memory.stages[stage];
    const int n = rows - i * kTile;
    const Angles angles = load_angles(team, angle, n);
    Features<E, kHead, false> queries, keys;
    make_features(team, queries, m.q, memory.fq, angles, n);
    if (p.causal) make_features(team, keys, m.k, memory.fk, angles, n);
    const float count = team.chunk_count(i), factor = fast_reciprocal(count);
    const ChunkState<E, kHead> key_state(team, p.causal ? i : 0);
    team.sync();
    Acc o;
    RowPair inverse;
    attend<false>(
        team, n, count, queries, keys, m.v, [&](int t) { return load_packed<E, false>(key_state.tile(team.warp, t)); },
        [&](int t) { return team.row_vector(key_state.sums + t * kTile); }, o, inverse, [](int, const Operand<E>&) {});
    Acc a;
    team.load_pairs(a, m.dy);
    if (p.g.data) {
      Acc gate;
      team.load_pairs(gate, m.g);
      a = gated(a, gate);
    }
    scale_gradient(team, a, o, inverse, m.dy, memory.d_denominator, memory.row_sums);
    team.sync();
    add_queries<E, kHead>(queries, load_operand<E, true>(m.dy + team.own(), T::kStride), factor, state);
    add_query_sum(team, queries, memory.d_denominator, factor, sum);
    if (angle) angle += kTile * static_cast<int>(p.width());
  };
  pipeline(team, team.chunks(), copy, use);
  float* const out = team.state(p.query_state);
  team.store_state(out, state);
  team.store_sum(out, sum);
}

}  // namespace recgrela::cuda
