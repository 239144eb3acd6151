// The sums over a segment that others need: of its keys and values or, in the backward, of its queries and gradients.
#pragma once

#include "kernels/rela_team.cuh"

namespace recgrela::cuda {

template <typename E, int kHead>
struct SumsMemory {
  using T = Team<E, kHead>;
  struct alignas(16) Stage {
    E x[T::kTileSize], y[T::kTileSize], g[T::kTileSize];
  };
  Segment segment;
  Stage stages[T::kStages];
  E f[T::kTileSize];
  float scales[2 * kTile];
};

template <typename E, int kHead>
__global__ void __launch_bounds__(Team<E, kHead>::kThreads, Team<E, kHead>::kForwardBlocks)
    sums_kernel(const RelaPlan p) {
  using T = Team<E, kHead>;
  auto& memory = team_memory<SumsMemory<E, kHead>, T>();
  T team(p, memory.segment);
  if (!team.find_work(memory.segment)) return;
  const Segment& segment = team.segment;
  // In the causal form nobody comes after a sequence's last keys, or before its first queries.
  if (p.causal && segment.index == (p.queries ? 0 : segment.count - 1)) return;
  const bool gated = p.queries && p.g.data;

  Acc state[T::kTiles];
  RowVector sum;
  auto copy = [&](int64_t chunk, int stage) {
    const int64_t t0 = segment.begin + chunk * kTile;
    auto& m = memory.stages[stage];
    team.copy_chunk(m.x, p.queries ? p.q : p.k, t0);
    team.copy_chunk(m.y, p.queries ? p.dy : p.v, t0);
    if (gated) team.copy_chunk(m.g, p.g, t0);
  };
  auto use = [&](int64_t chunk, int stage) {
    const int64_t t0 = segment.begin + chunk * kTile;
    const int n = static_cast<int>(segment.end - t0 < kTile ? segment.end - t0 : kTile);
    auto& m = memory.stages[stage];
    float factor = 1.f;
    RowVector weights = {{1.f, 1.f, 1.f, 1.f}};
    if (p.queries) {
      team.load_scales(memory.scales, t0, n);
      team.sync();
      team.gate_gradient(m.y, gated ? m.g : nullptr, memory.scales);
      factor = 1.f / team.chunk_count(t0);
      weights = team.row_vector(memory.scales + 1, 2);
    }
    team.features(t0, n, m.x, memory.f);
    team.sync();
    const Operand<E> y = load_operand<E, true>(m.y + team.own(), T::kStride);
#pragma unroll
    for (int t = 0; t < T::kTiles; ++t) {
      Acc part;
      mma(part, y, load_operand<E, true>(m.x + t * kTile, T::kStride));
      add_scaled(state[t], part, factor);
    }
    add_weighted(sum, weights, load_operand<E, true>(memory.f + team.own(), T::kStride), factor);
  };
  pipeline(team, (segment.end - segment.begin + kTile - 1) / kTile, false, copy, use);
  float* const out = team.state(p.queries ? p.query_state : p.key_state);
  team.store_state(out, state);
  team.store_sum(out, sum);
}

}  // namespace recgrela::cuda
