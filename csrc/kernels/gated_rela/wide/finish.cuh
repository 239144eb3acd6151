// End of a chunk: denominators, convolution, gate, and rows of the output.
#pragma once

#include "kernels/gated_rela/wide/conv.cuh"

namespace recgrela::cuda {

// Stores 1 / (factor (denominator + eps * number of keys)) of each row of the chunk, from the sums over the channels of
// each warp. Readable after a barrier.
template <typename E, int kHead>
__device__ void invert_denominators(const WideTeam<E, kHead>& team, const float* sums, float* inverse) {
  using T = WideTeam<E, kHead>;
  const int row = team.thread;
  if (row >= T::kRows) return;
  float sum = 0.f;
#pragma unroll
  for (int w = 0; w < T::kTiles; w += 4) {
    const float4 x = *reinterpret_cast<const float4*>(sums + row * T::kTiles + w);
    sum += x.x + x.y + (x.z + x.w);
  }
  inverse[row] = fast_reciprocal((sum + team.p.eps * team.num_keys(team.begin() + row + 1)) * team.factor());
}

// Divides the outputs of the chunk by the denominators and adds SiLU of the convolution.
template <typename E, int kHead, typename Memory>
__device__ void add_convolution(const WideTeam<E, kHead>& team, Memory& m, Acc (&out)[WideTeam<E, kHead>::kRowTiles]) {
  const int tiles = team.num_tiles();
#pragma unroll
  for (int r = 0; r < WideTeam<E, kHead>::kRowTiles; ++r) {
    if (r >= tiles) break;
    __syncwarp();  // keeps the compiler from mixing tiles, for which there are too few registers
    const float* const inverse = m.inverse + r * kTile + team.lane / 4;
    const RowPair factor{{inverse[0], inverse[8]}};
    if (team.p.kernel_size == 0) {
      scale_rows(out[r], factor);
      continue;
    }
    const Acc c = convolve_rows(team, m.v, m.conv, r);
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      const float silu = scaled_silu<E>(c.x[e / 4][e % 4]);
      out[r].x[e / 4][e % 4] = out[r].x[e / 4][e % 4] * factor.x[e / 2 % 2] + silu;
    }
  }
}

// Multiplies the outputs of the chunk by SiLU of the gates and stores them.
template <typename E, int kHead, typename Memory>
__device__ void store_outputs(const WideTeam<E, kHead>& team, Memory& m, Acc (&out)[WideTeam<E, kHead>::kRowTiles]) {
  using T = WideTeam<E, kHead>;
  const RelaPlan& p = team.p;
  const int lane = team.lane, tiles = team.num_tiles();
  constexpr bool kPairs = sizeof(E) == 4;  // a lane stores pairs at its place in tiles, or else 16 bytes of half a row
  const int row = kPairs ? lane / 4 : lane / 2, column = kPairs ? tile_col(lane, 0, 0) : lane % 2 * 8;
  const int left = team.rows_left() - row;  // rows from this lane's first one on
  E* y = static_cast<E*>(p.y.data) + team.unit.y + team.offset(p.y, team.begin() + row, team.own() + column);
#pragma unroll
  for (int r = 0; r < T::kRowTiles; ++r) {
    if (r >= tiles) break;
    __syncwarp();
    Acc& o = out[r];
    if constexpr (sizeof(E) == 4) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int j = e / 2, h = e % 2;
        float a = o.x[j][2 * h], b = o.x[j][2 * h + 1];
        if (p.g.data) {
          const float2 g = load2(m.g.raw(r * kTile + row + 8 * h, team.own() + column + 8 * j));
          a *= scaled_silu<E>(g.x), b *= scaled_silu<E>(g.y);
        }
        if (r * kTile + 8 * h < left) store2(y + 8 * h * static_cast<int>(p.y.stride) + 8 * j, a, b);
      }
    } else {
      E* const tile = m.g.tile(team.warp, r);
      if (p.g.data) {
        uint32_t g[4];
        load_matrices<false>(g, tile + team.at.along);
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const float2 x = unpack2<E>(kSiluScale<E> == 1.f ? g[e] : halve2<E>(g[e]));
          o.x[e / 2][e % 2 * 2] *= scaled_silu<E>(x.x), o.x[e / 2][e % 2 * 2 + 1] *= scaled_silu<E>(x.y);
        }
        __syncwarp();
      }
      store_tile<E>(tile, o, team.at);
      __syncwarp();
      const uint4 x = *reinterpret_cast<const uint4*>(tile + swizzled(row, column));
      if (r * kTile < left) *reinterpret_cast<uint4*>(y) = x;
    }
    y += kTile * p.y.stride;
  }
}

}  // namespace recgrela::cuda
