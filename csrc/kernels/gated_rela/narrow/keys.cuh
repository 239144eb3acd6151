// Features of queries and keys, and sums over keys, of one warp with 16-bit rows.
#pragma once

#include "kernels/gated_rela/narrow/quads.cuh"

namespace recgrela::cuda::narrow {

// Loads rows as the elements of a tile that this lane holds, in the registers of operand A, or B if kRight.
template <typename E, bool kRight>
__device__ Acc load_tile(const TileLane& at, const unsigned char* rows) {
  Acc a;
  uint32_t r[4];
  load_matrices<false>(r, rows + (kRight ? at.swapped : at.straight));
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 x = unpack2<E>(r[i]);
    const int j = kRight ? i % 2 : i / 2, h = kRight ? i / 2 : i % 2;
    a.x[j][2 * h] = x.x, a.x[j][2 * h + 1] = x.y;
  }
  return a;
}

template <typename E>
__device__ void store_right(const TileLane& at, unsigned char* tile, const RightSplit<E>& m) {
  store_matrices_swapped(tile, at.lane, at.swapped, {m.r[0][0][0], m.r[0][0][1], m.r[0][1][0], m.r[0][1][1]});
}

// Keys of a chunk and sums over the keys before it. In 16 bits, tensor cores add the chunk to both sums.
template <typename E, int kHead>
class Keys {
 public:
  static constexpr int kTiles = kHead / kTile;
  using Values = ValueRows<E, kHead>;
  KeySums<kTiles> sums;

  explicit __device__ Keys(const Head<E, kHead>& head) : at_(head.at), padding_(head.is_padded() ? 0u : ~0u) {
#pragma unroll
    for (int i = 0; i < 4; ++i) ones_[i] = kOnes<E>;
  }

  // Stores phi(k) of a tile of keys to `plain`, and R phi(k) in their place. Both are readable after a barrier. Returns
  // R phi(k). Of the 16 rows, n are in the segment; the others are left out of the sums of phi(k), and the values there
  // are zeros.
  __device__ RightSplit<E> make(unsigned char* k, unsigned char* plain, const TileAngles& angles, int n) {
    Acc f = load_tile<E, true>(at_, k);
    apply_phi(f);
    const RightSplit<E> rotated = to_right<E>(rotate(f, angles));
    store_right<E>(at_, k, rotated);
    RightSplit<E> features = to_right<E>(f);
    if constexpr (kTiles == 1) features.r[0][0][1] &= padding_, features.r[0][1][1] &= padding_;
    store_right<E>(at_, plain, features);
    if (n < kTile) leave_out(n);
    return rotated;
  }
  // Add phi(k) of tile t to its sums, as the operand that it is in other kernels: before a barrier, and after it.
  __device__ void start_sum(int, unsigned char* k, unsigned char* plain, const TileAngles& angles, int n) {
    make(k, plain, angles, n);
  }
  __device__ void finish_sum(int t, const unsigned char* plain) {
    add_ones_product<E>(sums.features[t], ones_, load_right_transposed<E>(at_, plain));
  }
  // Completes the sums of phi(k) after the last chunk.
  __device__ void complete() {}
  // Adds phi(k) of tile t to its sums and returns the sums up to each row. `lower` are ones on and below the diagonal,
  // zeros above it.
  __device__ Acc running_features(int t, const unsigned char* plain, const uint32_t (&lower)[4]) {
    const RightSplit<E> k = load_right_transposed<E>(at_, plain);
    Acc running;
#pragma unroll
    for (int j = 0; j < 2; ++j) mma16816<E>(running.x[j], lower, k.r[0][j], sums.features[t].x[j]);
    add_ones_product<E>(sums.features[t], ones_, k);
    return running;
  }
  // Adds R phi(k) (x) v, given R phi(k) and the values.
  __device__ void add_products(const unsigned char* k, const unsigned char* v) {
    RightSplit<E> key[kTiles];
#pragma unroll
    for (int t = 0; t < kTiles; ++t) key[t] = load_right_transposed<E>(at_, k + t * kTileBytes<E>);
#pragma unroll
    for (int u = 0; u < kTiles; ++u) {
      uint32_t value[4];
      load_matrices<true>(value, v + Values::left(at_.lane) + u * Values::kTileBytes);
#pragma unroll
      for (int t = 0; t < kTiles; ++t)
#pragma unroll
        for (int j = 0; j < 2; ++j) mma16816<E>(sums.products[u][t].x[j], value, key[t].r[0][j]);
    }
  }

 private:
  __device__ void leave_out(int n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = i / 2 * 8 + at_.lane % 4 * 2;
      ones_[i] = kOnes<E> & ((row < n ? 0xffffu : 0u) | (row + 1 < n ? 0xffff0000u : 0u));
    }
  }

  const TileLane& at_;
  const uint32_t padding_;  // mask of channels 8 to 15
  uint32_t ones_[4];        // ones^T, zeros for rows after the segment
};

// The lane's angles of a tile.
template <typename E>
__device__ auto load_lane_angles(const TileLane& at, const unsigned char* rows) {
  if constexpr (sizeof(E) == 4)
    return load_quads(rows + at.straight);
  else
    return load_angles(at, rows);
}

// Blocks per multiprocessor for which the compiler limits registers.
template <typename E, int kHead, bool kCausal>
constexpr int kForwardBlocks = kHead > kTile&& kCausal                         ? 4
                               : kHead > kTile || kScaled<E> || sizeof(E) == 4 ? 6
                                                                               : RECGRELA_GATED_RELA_FORWARD_BLOCKS;

}  // namespace recgrela::cuda::narrow
