// Features of a chunk's queries and keys, and denominators of its rows.
#pragma once

#include "kernels/common/activations.cuh"
#include "kernels/gated_rela/wide/team.cuh"

namespace recgrela::cuda {

// (cos, sin) for the pairs of channels that this lane holds.
struct WideAngles {
  float2 x[2][2];  // [j][row / 8], as in Acc
};

// R x
inline __device__ Acc rotate(const Acc& x, const WideAngles& angles) {
  Acc y;
#pragma unroll
  for (int j = 0; j < 2; ++j)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float2 a = angles.x[j][h];
      const float u = x.x[j][2 * h], v = x.x[j][2 * h + 1];
      y.x[j][2 * h] = u * a.x - v * a.y, y.x[j][2 * h + 1] = v * a.x + u * a.y;
    }
  return y;
}
// This lane's entry of the rotary table for the first row of the chunk; null without a table.
template <typename E, int kHead>
__device__ const float* find_wide_angle(const WideTeam<E, kHead>& team) {
  if (!team.unit.angles) return nullptr;
  return team.unit.angles + (team.begin() + team.lane / 4) * team.p.width() + team.own() + tile_col(team.lane, 0, 0);
}

// Loads the angles of a tile of which n rows are in the segment, and moves to the next one. Rows after them are not
// rotated.
template <typename E, int kHead>
__device__ WideAngles load_tile_angles(const WideTeam<E, kHead>& team, const float*& angle, int n) {
  WideAngles angles;
  const int below = 8 * static_cast<int>(team.p.width());
  const float* const rows[2] = {angle, angle + below};
  if (angle && n >= kTile) {
#pragma unroll
    for (int e = 0; e < 4; ++e)
      angles.x[e / 2][e % 2] = __ldg(reinterpret_cast<const float2*>(rows[e % 2] + e / 2 * 8));
    angle += 2 * below;
  } else {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      angles.x[e / 2][e % 2] = make_float2(1.f, 0.f);
      if (angle && team.lane / 4 + e % 2 * 8 < n)
        angles.x[e / 2][e % 2] = __ldg(reinterpret_cast<const float2*>(rows[e % 2] + e / 2 * 8));
    }
  }
  return angles;
}

// phi of a tile, and zeros for the rows from n on.
inline __device__ void apply_phi(Acc& x, int n, int lane) {
#pragma unroll
  for (int i = 0; i < 8; ++i) x.x[i / 4][i % 4] = phi(x.x[i / 4][i % 4]);
  if (n < kTile) {
#pragma unroll
    for (int i = 0; i < 8; ++i)
      if (tile_row(lane, i % 4) >= n) x.x[i / 4][i % 4] = 0.f;
  }
}

// Ones on and below the diagonal as the operand A of a part.
template <typename P>
__device__ Operand<P> lower_ones(int lane) {
  const int row = lane / 4, column = lane % 4 * 2;
  const uint32_t diagonal = pack2<P>(column > row ? 0.f : 1.f, column + 1 > row ? 0.f : 1.f);
  return {{diagonal, pack2<P>(1.f, 1.f), 0, diagonal}};
}

// Last row of a tile.
inline __device__ RowVector last_row(const Acc& a, int lane) {
  RowVector row;
#pragma unroll
  for (int i = 0; i < 4; ++i) row.x[i] = __shfl_sync(0xffffffffu, a.x[i / 2][2 + i % 2], 28 + lane % 4);
  return row;
}

// Sums of a tile of keys up to each of its rows, plus the sum of all rows before. `keys` is the operand B of the keys
// by columns.
template <typename E>
__device__ Acc running_sums(const RowVector& sum, const RightSplit<E>& keys, int lane) {
  const Operand<Part<E>> lower = lower_ones<Part<E>>(lane);
  Acc running;
  if constexpr (kParts<E> == 1) {
#pragma unroll
    for (int i = 0; i < 8; ++i) running.x[i / 4][i % 4] = sum.x[i / 4 * 2 + i % 2];
  }
#pragma unroll
  for (int j = 0; j < 2; ++j)
#pragma unroll
    for (int p = kParts<E> - 1; p >= 0; --p) mma16816<Part<E>>(running.x[j], lower.r, keys.r[p][j]);
  if constexpr (kParts<E> > 1) {
#pragma unroll
    for (int i = 0; i < 8; ++i) running.x[i / 4][i % 4] += sum.x[i / 4 * 2 + i % 2];
  }
  return running;
}

// Sums over own channels of a . b for the rows of a tile: stores them to out[row * stride].
inline __device__ void store_dots(float* out, int stride, const Acc& a, const Acc& b, int lane) {
  float sum[2] = {};
#pragma unroll
  for (int i = 0; i < 8; ++i) sum[i / 2 % 2] += a.x[i / 4][i % 4] * b.x[i / 4][i % 4];
  // Lanes exchange one row for the other, so that each adds up only one.
  const bool odd = lane % 2;
  float own = odd ? sum[1] : sum[0];
  own += __shfl_xor_sync(0xffffffffu, odd ? sum[0] : sum[1], 1);
  own += __shfl_xor_sync(0xffffffffu, own, 2);
  if (lane % 4 < 2) out[(lane / 4 + lane % 2 * 8) * stride] = own;
}

// Replaces tile r of own channels of k, as it was copied, by R phi(k), for a tile of which n rows are in the segment.
// Returns the sums of phi(k) up to each row and adds the tile to `sum`. Other warps may read the tile after a barrier.
template <typename E, int kHead, int kRows>
__device__ Acc make_keys(const WideTeam<E, kHead>& team, TileMatrix<E, kHead, kRows>& k, int r, int n,
                         const WideAngles& angles, RowVector& sum) {
  Part<E>* const tile = k.tile(team.warp, r);
  Acc x = k.load_raw(team.warp, r, team.at);
  apply_phi(x, n, team.lane);
  __syncwarp();  // all lanes have loaded
  store_tile<E>(tile, x, team.at);
  __syncwarp();
  const Acc running = running_sums<E>(sum, load_right<E, true>(tile, team.at), team.lane);
  sum = last_row(running, team.lane);
  __syncwarp();
  store_tile<E>(tile, rotate(x, angles), team.at);
  return running;
}

// Replaces a tile of q likewise. Returns phi(q).
template <typename E, int kHead, int kRows>
__device__ Acc make_queries(const WideTeam<E, kHead>& team, TileMatrix<E, kHead, kRows>& q, int r,
                            const WideAngles& angles) {
  Acc x = q.load_raw(team.warp, r, team.at);
  apply_phi(x, kTile, team.lane);
  __syncwarp();
  store_tile<E>(q.tile(team.warp, r), rotate(x, angles), team.at);
  return x;
}

}  // namespace recgrela::cuda
