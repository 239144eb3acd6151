// Sweep over the keys and values of a segment for the backward of heads of 64 and 128 channels.
#pragma once

#include "kernels/gated_rela/chunk.cuh"

namespace recgrela::cuda {

template <typename E, int kHead>
struct KeySumsMemory {
  using T = Team<E, kHead>;
  struct alignas(16) Stage {
    E k[T::kTileSize], v[T::kTileSize];
  };
  RelaSegment segment;
  Stage stages[T::kStages];
  E fk[T::kTileSize];
};

// Calls before(i) for each chunk i of the segment and then adds its keys to the state. Skips the last `skipped` chunks.
template <typename E, int kHead, typename Before>
__device__ void sweep_keys(const Team<E, kHead>& team, KeySumsMemory<E, kHead>& memory, int skipped,
                           Acc (&state)[Team<E, kHead>::kTiles], RowVector& sum, Before before) {
  const RelaPlan& p = team.p;
  Sources<E, kHead> from;
  from.find(team, 0);
  const float* angle = find_angle(team, 0);
  const int rows = team.rows();
  auto copy = [&](int i, int stage) {
    auto& m = memory.stages[stage];
    team.copy_chunk(m.k, from.k, p.k, rows - i * kTile);
    team.copy_chunk(m.v, from.v, p.v, rows - i * kTile);
    from.move(team, 1);
  };
  auto use = [&](int i, int stage) {
    auto& m = memory.stages[stage];
    const int n = rows - i * kTile;
    before(i);
    Features<E, kHead> keys;
    make_features(team, keys, m.k, memory.fk, load_angles(team, angle, n), n);
    if (angle) angle += kTile * static_cast<int>(p.width());
    team.sync();
    add_keys(team, keys, m.v, state);
    add_columns(sum, load_operand<E, true>(keys.plain + team.own(), Team<E, kHead>::kStride));
  };
  pipeline(team, team.chunks() - skipped, copy, use);
}

}  // namespace recgrela::cuda
