// Values of a chunk in shared memory, as operands and for the convolution, which reads the rows before the chunk too.
#pragma once

#include "kernels/gated_rela/wide/team.cuh"

namespace recgrela::cuda {

// Rows before the chunk in the matrix of values: a multiple of 8, of which the last kMaxHistory are used.
constexpr int kWideBefore = 8;

template <typename E, int kHead>
using WideValues = RawMatrix<E, kHead, WideTeam<E, kHead>::kRows + kWideBefore>;

// Starts copying the kMaxHistory values before the chunk. Before the first chunk of a sequence, these are the initial
// history, or zeros.
template <typename E, int kHead>
__device__ void copy_history(const WideTeam<E, kHead>& team, WideValues<E, kHead>& v) {
  using T = WideTeam<E, kHead>;
  constexpr int kVectors = kHead / T::kVector;
  const int row = team.thread / kVectors, channel = team.thread % kVectors * T::kVector;
  if (row >= kMaxHistory) return;
  const RelaPlan& p = team.p;
  const RelaSegment& segment = team.unit.segment;
  const E* source = static_cast<const E*>(team.unit.v) + int64_t{team.begin() + row - kMaxHistory} * p.v.stride;
  bool valid = true;
  if (team.begin() == 0 && segment.is_first()) {
    const int history = p.kernel_size - 1, k = row - (kMaxHistory - history);
    valid = p.initial_history && k >= 0;
    if (valid)
      source =
          static_cast<const E*>(p.initial_history) + (segment.sequence * history + k) * p.width() + team.head_channel();
  }
  copy_async16(v.raw(row + kWideBefore - kMaxHistory, channel), source + channel, valid);
}

// Operand A of tile r of own values by columns: M[i][k] is channel i of row k.
template <typename E, int kHead>
__device__ Split<E> left_values(const WideTeam<E, kHead>& team, WideValues<E, kHead>& v, int r) {
  if constexpr (sizeof(E) == 4) {
    Split<E> m;
    const int lane = team.lane;
    const float* const first = v.raw(kWideBefore + r * kTile + tile_col(lane, 0, 0), team.own() + lane / 4);
    constexpr int kStride = WideValues<E, kHead>::kStride;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float* const x = first + i / 2 * 8 * kStride + i % 2 * 8;
      set_pair(m, i, x[0], x[kStride]);
    }
    return m;
  } else {
    return load_left<E, true>(v.tile(team.warp, r) + kWideBefore * kTile, team.at);
  }
}

// The same as operand B.
template <typename E, int kHead>
__device__ RightSplit<E> right_values(const WideTeam<E, kHead>& team, WideValues<E, kHead>& v, int r) {
  if constexpr (sizeof(E) == 4) {
    const Split<E> left = left_values<E, kHead>(team, v, r);
    RightSplit<E> m;
#pragma unroll
    for (int p = 0; p < kParts<E>; ++p)
#pragma unroll
      for (int i = 0; i < 4; ++i) m.r[p][i % 2][i / 2] = left.part[p].r[i];
    return m;
  } else {
    return load_right<E, true>(v.tile(team.warp, r) + kWideBefore * kTile, team.at);
  }
}

// Adds R phi(k) (x) v of the chunk to the state of keys, by own value channels.
template <typename E, int kHead, int kRows>
__device__ void add_wide_keys(const WideTeam<E, kHead>& team, TileMatrix<E, kHead, kRows>& k, WideValues<E, kHead>& v,
                              Acc (&state)[kHead / kTile]) {
  using T = WideTeam<E, kHead>;
  const int tiles = team.num_tiles();
#pragma unroll 1
  for (int r = 0; r < tiles; ++r) {
    const Split<E> values = left_values<E, kHead>(T::kShort ? T(team.p, team.unit) : team, v, r);
#pragma unroll
    for (int t = 0; t < T::kTiles; ++t) {
      limit_overlap<E>();
      add_product(state[t], values, load_right<E, true>(k.tile(t, r), team.at));
    }
  }
}

}  // namespace recgrela::cuda
