// Pipeline over the chunks of a segment: copies to shared memory run ahead of their use.
#pragma once

#include "kernels/gated_rela/team.cuh"

namespace recgrela::cuda {

// Elements from one chunk to the next.
inline __device__ int chunk_stride(const RowMatrix& rows) { return kTile * static_cast<int>(rows.stride); }

// Addresses that a thread copies a chunk from.
template <typename E, int kHead>
struct Sources {
  using T = Team<E, kHead>;
  const E *q, *k, *v, *g, *d_y;

  // Points at chunk i of the segment.
  __device__ void find(const T& team, int i) {
    const RelaPlan& p = team.p;
    q = team.source(p.q, i), k = team.source(p.k, i), v = team.source(p.v, i), g = team.source(p.g, i);
    d_y = team.source(p.d_y, i);
  }
  __device__ void move(const T& team, int chunks) {
    const RelaPlan& p = team.p;
    q += chunks * chunk_stride(p.q), k += chunks * chunk_stride(p.k), v += chunks * chunk_stride(p.v);
    g += chunks * chunk_stride(p.g), d_y += chunks * chunk_stride(p.d_y);
  }
};

// Address that a lane stores a chunk to.
template <typename E, int kHead>
struct Target {
  const RowMatrix& rows;
  E* address;

  __device__ Target(const Team<E, kHead>& team, const RowMatrix& rows, int i)
      : rows(rows), address(team.target(rows, i)) {}
  // Stores n rows and moves by `chunks` chunks.
  __device__ void store(const Team<E, kHead>& team, int n, const Acc& a, int chunks) {
    team.store_chunk(address, rows, n, a);
    address += chunks * chunk_stride(rows);
  }
};

// Shared memory of the team.
template <typename Memory, typename T>
__device__ Memory& team_memory() {
  return reinterpret_cast<Memory*>(dynamic_shared())[threadIdx.x / (32 * T::kWarps)];
}

// Calls use(i, stage) for chunks 0 .. chunks - 1 in order. copy(i, stage) starts the copies of a chunk, one chunk ahead
// if there are two stages.
template <typename T, typename Copy, typename Use>
__device__ void pipeline(const T& team, int chunks, Copy copy, Use use) {
  if (chunks > 0) copy(0, 0);
  copies_commit();
  for (int i = 0; i < chunks; ++i) {
    if constexpr (T::kStages == 2) {
      if (i + 1 < chunks) copy(i + 1, (i + 1) % 2);
      copies_commit();
      copies_wait<1>();
    } else {
      copies_wait<0>();
    }
    team.sync();
    use(i, T::kStages == 2 ? i % 2 : 0);
    team.sync();
    if constexpr (T::kStages == 1) {
      if (i + 1 < chunks) copy(i + 1, 0);
      copies_commit();
    }
  }
  copies_wait<0>();
}

}  // namespace recgrela::cuda
