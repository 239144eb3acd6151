// Sums over the keys and values of a segment, as key_sums.cuh, for heads of 64 and 128 channels.
#pragma once

#include "kernels/gated_rela/wide/features.cuh"
#include "kernels/gated_rela/wide/values.cuh"

namespace recgrela::cuda {

template <typename E, int kHead>
struct WideKeySumsMemory {
  TileMatrix<E, kHead, WideTeam<E, kHead>::kRows> k;
  WideValues<E, kHead> v;
  alignas(8) float sum[kHead];
  WideUnit unit;
};

// A chunk takes two barriers: after the first, all keys are converted and all values have arrived; after the second,
// the next chunk may replace them.
template <typename E, int kHead>
__global__ void __launch_bounds__(WideTeam<E, kHead>::kThreads, WideTeam<E, kHead>::kBlocks)
    rela_wide_key_sums_kernel(const RelaPlan p) {
  using T = WideTeam<E, kHead>;
  auto& m = *reinterpret_cast<WideKeySumsMemory<E, kHead>*>(dynamic_shared());
  if (!T::find_unit(p, m.unit)) return;
  if (p.causal && m.unit.segment.is_last()) return;  // no segment comes after it
  const T team(p, m.unit);
  Acc state[T::kTiles];
  RowVector sum;
  if (m.unit.rows > 0) team.copy_rows(m.k, m.unit.k, p.k);
  copies_commit();
#pragma unroll 1
  while (team.rows_left() > 0) {
    copies_wait<0>();
    __syncthreads();
    team.template copy_rows<kWideBefore>(m.v, m.unit.v, p.v);
    copies_commit();
    const float* angle = find_wide_angle(team);
    const int n = team.rows_left(), tiles = team.num_tiles();
#pragma unroll 1
    for (int r = 0; r < tiles; ++r)
      make_keys(team, m.k, r, n - r * kTile, load_tile_angles(team, angle, n - r * kTile), sum);
    copies_wait<0>();
    __syncthreads();
    add_wide_keys(team, m.k, m.v, state);
    team.advance(m.unit);
    __syncthreads();
    if (team.rows_left() > 0) team.copy_rows(m.k, m.unit.k, p.k);
    copies_commit();
  }
  team.store_row_vector(m.sum, sum);
  __syncwarp();
  team.store_state(team.state(p.key_states), state, m.sum);
}

}  // namespace recgrela::cuda
