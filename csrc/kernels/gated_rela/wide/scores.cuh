// Scores of a chunk's queries with its keys, and their products with values.
#pragma once

#include "kernels/gated_rela/wide/values.cuh"

namespace recgrela::cuda {

// Tiles on and below the diagonal, row by row.
template <typename E, int kHead>
struct WideScores {
  static constexpr int kRowTiles = WideTeam<E, kHead>::kRowTiles;
  static constexpr int kPlanes = kParts<E> * kPackedTile;

  alignas(16) Part<E> x[kRowTiles * (kRowTiles + 1) / 2 * kPlanes];

  __device__ Part<E>* tile(int row, int column) { return x + (row * (row + 1) / 2 + column) * kPlanes; }
};

// Computes R phi(q) . R phi(k) of the rows of the chunk, multiplied by the chunk's factor. Each warp takes tiles of 16
// queries by 8 keys in turn. Readable after a barrier.
template <typename E, int kHead, int kRows>
__device__ void make_scores(const WideTeam<E, kHead>& team, TileMatrix<E, kHead, kRows>& q,
                            TileMatrix<E, kHead, kRows>& k, WideScores<E, kHead>& scores) {
  using T = WideTeam<E, kHead>;
  [[maybe_unused]] constexpr int kUnroll = T::kShort ? 2 : T::kTiles / 2;
  const int lane = team.lane, tiles = team.num_tiles();
  const float factor = team.factor();
  // Eight keys at 16 channels of two tiles are four matrices of ldmatrix.
  const int key_lane = lane / 16 * TileMatrix<E, kHead, kRows>::kBlock + swizzled(lane % 8, lane / 8 % 2 * 8);
#pragma unroll 1
  for (int unit = team.warp; unit < tiles * (tiles + 1); unit += kHead / kTile) {
    const int pair = unit / 2, j = unit % 2;
    const int row = (pair >= 1) + (pair >= 3) + (pair >= 6), column = pair - row * (row + 1) / 2;
    const Part<E>* const queries = q.tile(0, row);
    const Part<E>* const keys = k.tile(0, column) + j * 8 * kTile + key_lane;
    float sum[2][4] = {};  // of even and odd tiles of channels, so that half as many products wait for each other
#pragma unroll(kUnroll)
    for (int t = 0; t < kHead / kTile; t += 2) {
      limit_overlap<E>();
      RightSplit<E> b;
#pragma unroll
      for (int p = 0; p < kParts<E>; ++p) {
        uint32_t r[4];
        load_matrices<false>(r, keys + t * TileMatrix<E, kHead, kRows>::kBlock + p * kPackedTile);
#pragma unroll
        for (int e = 0; e < 4; ++e) b.r[p][e / 2][e % 2] = r[e];
      }
#pragma unroll
      for (int s = 0; s < 2; ++s) {
        const Split<E> a = load_left<E, false>(queries + (t + s) * TileMatrix<E, kHead, kRows>::kBlock, team.at);
        add_columns_product(sum[s], a, b, s);
      }
    }
    Part<E>* const tile = scores.tile(row, column) + (team.at.pair ^ j * 8);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float x[2] = {sum[0][2 * h] + sum[1][2 * h], sum[0][2 * h + 1] + sum[1][2 * h + 1]};
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        if constexpr (kScaled<E>) x[e] *= factor;
        if (row == column && tile_col(lane, j, e) > tile_row(lane, 2 * h)) x[e] = 0.f;
      }
      const Split2<E> split(x[0], x[1]);
#pragma unroll
      for (int p = 0; p < kParts<E>; ++p)
        *reinterpret_cast<uint32_t*>(tile + p * kPackedTile + h * 8 * kTile) = split.part[p];
    }
  }
}

// Adds the products of the scores with own values.
template <typename E, int kHead, typename V>
__device__ void add_score_products(const WideTeam<E, kHead>& team, WideScores<E, kHead>& scores, V& v,
                                   Acc (&out)[WideTeam<E, kHead>::kRowTiles]) {
  const int tiles = team.num_tiles();
#pragma unroll
  for (int c = 0; c < WideTeam<E, kHead>::kRowTiles; ++c) {
    if (c >= tiles) break;
    const RightSplit<E> values = right_values<E, kHead>(team, v, c);
#pragma unroll
    for (int r = c; r < WideTeam<E, kHead>::kRowTiles; ++r) {
      if (r >= tiles) break;
      limit_overlap<E>();
      add_product(out[r], load_left<E, false>(scores.tile(r, c), team.at), values);
    }
  }
}

}  // namespace recgrela::cuda
