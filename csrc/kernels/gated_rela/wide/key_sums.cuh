// Sums of R phi(k) (x) v and of phi(k) over the rows of a segment, for heads of 64 and 128 channels.
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

// Converts the keys of the chunk at own channels and adds them to their sum.
template <typename E, int kHead>
__device__ void make_chunk_keys(const WideTeam<E, kHead>& team, WideKeySumsMemory<E, kHead>& m) {
  const float* angle = find_wide_angle(team);
  RowVector sum = team.row_vector(m.sum);
  const int n = team.rows_left(), tiles = team.num_tiles();
#pragma unroll 1
  for (int r = 0; r < tiles; ++r)
    make_keys(team, m.k, r, n - r * kTile, load_tile_angles(team, angle, n - r * kTile), sum);
  team.store_row_vector(m.sum, sum);
}

// A chunk takes three barriers: after the first, its keys have arrived; after the second, all are converted and its
// values have arrived; after the third, the next keys may replace them.
template <typename E, int kHead>
__global__ void __launch_bounds__(WideTeam<E, kHead>::kThreads, WideTeam<E, kHead>::kBlocks)
    rela_wide_key_sums_kernel(const RelaPlan p) {
  using T = WideTeam<E, kHead>;
  auto& m = *reinterpret_cast<WideKeySumsMemory<E, kHead>*>(dynamic_shared());
  if (!T::find_unit(p, m.unit)) return;
  if (p.causal && m.unit.segment.is_last()) return;  // no segment comes after it
  Acc state[T::kTiles];
  {
    const T team(p, m.unit);
    team.load_state(nullptr, state, m.sum);
    if (m.unit.rows > 0) team.copy_rows(m.k, m.unit.k, p.k);
    copies_commit();
  }
#pragma unroll 1
  while (T(p, m.unit).rows_left() > 0) {
    copies_wait<0>();
    __syncthreads();
    T(p, m.unit).template copy_rows<kWideBefore>(m.v, m.unit.v, p.v);
    copies_commit();
    make_chunk_keys(T(p, m.unit), m);
    copies_wait<0>();
    __syncthreads();
    add_wide_keys(T(p, m.unit), m.k, m.v, state);
    T(p, m.unit).advance(m.unit);
    __syncthreads();
    const T team(p, m.unit);
    if (team.rows_left() > 0) team.copy_rows(m.k, m.unit.k, p.k);
    copies_commit();
  }
  const T team(p, m.unit);
  team.store_state(team.state(p.key_states), state, m.sum);
}

}  // namespace recgrela::cuda
