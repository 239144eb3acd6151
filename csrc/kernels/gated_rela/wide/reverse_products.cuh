// Products of a chunk in the backward of heads of 64 and 128 channels, and the shared memory that they read.
#pragma once

#include "kernels/gated_rela/wide/conv_gradient.cuh"
#include "kernels/gated_rela/wide/key_states.cuh"

namespace recgrela::cuda {

template <typename E, int kHead>
struct GradientMemory {
  using T = GradientTeam<E, kHead>;
  using Matrix = TileMatrix<E, kHead, T::kRows>;
  static constexpr int kScoreTile = kParts<E> * kPackedTile;
  // The state of queries passes from warp to warp by value and key channels: in shared memory at 16 bits, in the team's
  // workspace otherwise.
  static constexpr bool kExchange = sizeof(E) == 2;
  static constexpr bool kKeepsFeatures = sizeof(E) == 4;  // in shared memory, to save registers

  GradientUnit unit;
  Matrix q, k, v, a;
  // W and P, and P Z, over the number of channels for float16. float32, to which the order of divisions makes no
  // difference, has only P Z.
  static constexpr bool kHasP = sizeof(E) == 2;
  static constexpr int kW = 0, kPZ = 1, kP = 2, kScores = kHasP ? 3 : 2;
  alignas(16) Part<E> scores[kScores][T::kPairs][kScoreTile];
  alignas(16) Part<E> exchange[kExchange ? kHead * kHead : 8];
  KeptTile<E> phi_q[kKeepsFeatures ? T::kThreads : 1], phi_k[kKeepsFeatures ? T::kThreads : 1];
  ConvGradientMemory<E, kHead> conv;
  float inverses[T::kRows];  // n / Z
  // Sums of rows over the channels of each warp: denominators, and a . o. Sums over row tiles, which their warps tell
  // each other, are in their place: of phi(k), of two chunks in turn, before the sweep; and of d_Z phi(q) in the first
  // half, when all warps have read the denominators, but not all have read a . o.
  union {
    float by_channel[2][T::kRows * T::kTiles];
    alignas(16) float by_row[2][T::kRowTiles][kHead];
  };
  static_assert(sizeof(float[T::kRows * T::kTiles]) == sizeof(float[T::kRowTiles][kHead]));
  alignas(16) float sums[2][kHead];  // of d_Z phi(q) after chunks, in turn
};

// Scale of u = a / Z in float16, whose range is small: n / Z is about one over the number of channels.
template <typename E, int kHead>
constexpr float kGradientRange = kScaled<E> ? kHead : 1;

template <typename E, int kHead, bool kGradients>
struct ReverseProducts {
  using T = GradientTeam<E, kHead>;
  using Memory = GradientMemory<E, kHead>;
  using Matrix = typename Memory::Matrix;
  static constexpr int kTiles = T::kTiles, kRowTiles = T::kRowTiles, kRows = T::kRows, kKeyTiles = T::kKeyTiles;

  T team;
  Memory& m;
  const RelaPlan& p;

  // The chunk that is processed.
  typename T::Chunk chunk;
  int index = 0;  // of the chunk in the segment
  float factor = 1;

  __device__ ReverseProducts(const T& team, Memory& m) : team(team), m(m), p(team.p) {}

  // Starts a part of the work of chunk i.
  __device__ void begin_part(int i) {
    if (kRowTiles > 1) team.find_indices(computed_here(threadIdx.x));
    chunk = team.chunk(i), index = i, factor = team.factor(i);
  }

  // n / Z of the lane's rows of row tile r, zero after the last row; after barrier 1.
  __device__ RowPair inverse(int r) const {
    RowPair z = team.get_row_sums(m.by_channel[0], r);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int i = r * kTile + team.lane / 4 + 8 * h;
      z.x[h] = i < chunk.n ? fast_reciprocal(z.x[h] + p.eps * (team.num_keys(index, i) * factor)) : 0.f;
    }
    return z;
  }

  // Gradients of Z / n of the lane's rows, after barrier 3.
  __device__ RowPair denominator_gradients() const {
    RowPair d = team.get_row_sums(m.by_channel[1], team.row_tile);
#pragma unroll
    for (int h = 0; h < 2; ++h) d.x[h] *= -m.inverses[team.row_tile * kTile + team.lane / 4 + 8 * h];
    return d;
  }

  // Sums of phi(k) over n up to each of the lane's rows, by which queries are multiplied to give their denominators.
  __device__ Acc key_sums(const StoredState<E, kHead>& keys, const KeptTile<E>& phi_k) const {
    Acc sums = equal_rows(load_channels(keys.sums));
    if (p.causal) add_scaled(sums, running_sums<E>(phi_k.split()), factor);
    return sums;
  }

  // Stops the compiler from loading more operands ahead than registers can hold, before step t of a product.
  static __device__ void limit(int t) {
    if (sizeof(E) == 4 || t % (16 / kTiles) == 0) __syncwarp();
  }

  // out += rows B^T of the warp's rows, where operand(t) is B's tile t.
  template <typename Operand>
  __device__ void multiply(Acc& out, Matrix& rows, Operand operand) const {
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      limit(t);
      add_product(out, load_left<E, false>(rows.tile(t, team.row_tile), team.at), operand(t));
    }
  }

  // out += scale * scores * rows at own channels: row tiles up to the warp's, or from it on and transposed scores if
  // kTranspose.
  template <bool kTranspose>
  __device__ void add_scores(Acc& out, int which, Matrix& rows, float scale) const {
    Acc part;
    Acc& to = kScaled<E> ? part : out;
#pragma unroll
    for (int s = 0; s < kRowTiles; ++s) {
      const int r = team.row_tile;
      if (kTranspose ? s < r : s > r) continue;
      const int pair = kTranspose ? s * (s + 1) / 2 + r : r * (r + 1) / 2 + s;
      add_product(to, load_left<E, kTranspose>(m.scores[which][pair], team.at),
                  load_right<E, true>(rows.tile(team.channel_tile, s), team.at));
    }
    if constexpr (kScaled<E>) add_scaled(out, part, scale);
  }

  static __device__ void store_pair(Part<E>* to, const float (&x)[2]) {
    const Split2<E> split(x[0], x[1]);
#pragma unroll
    for (int part = 0; part < kParts<E>; ++part)
      *reinterpret_cast<uint32_t*>(to + part * kPackedTile) = split.part[part];
  }
  // Computes this warp's share of the scores, in tiles of 16 rows by 8.
  __device__ void compute_scores() const {
    constexpr int kJobs = (kGradients ? 4 : 2) * T::kPairs;
    const int lane = team.lane;
    // Eight rows of B at 16 channels of two tiles are four matrices of ldmatrix.
    const int right_lane = lane / 16 * Matrix::kBlock + swizzled(lane % 8, lane / 8 % 2 * 8);
#pragma unroll 1
    for (int job = team.row_tile * kTiles + team.channel_tile; job < kJobs; job += T::kWarps) {
      const int j = job % 2, pair = job / 2 % T::kPairs;
      const bool of_values = job / 2 / T::kPairs;
      static_assert(kRowTiles <= 2);
      const int r = pair > 0, s = pair > 1;
      const Part<E>* const left = (of_values ? m.a : m.q).tile(0, r);
      const Part<E>* const right = (of_values ? m.v : m.k).tile(0, s) + j * 8 * kTile + right_lane;
      float sum[2][4] = {};  // of even and odd tiles of channels, so that half as many products wait for each other
#pragma unroll(sizeof(E) == 4 ? 1 : kTiles / 2)
      for (int t = 0; t < kTiles; t += 2) {
        limit(t);
        RightSplit<E> b;
#pragma unroll
        for (int part = 0; part < kParts<E>; ++part) {
          uint32_t x[4];
          load_matrices<false>(x, right + t * Matrix::kBlock + part * kPackedTile);
#pragma unroll
          for (int e = 0; e < 4; ++e) b.r[part][e / 2][e % 2] = x[e];
        }
#pragma unroll
        for (int odd = 0; odd < 2; ++odd)
          add_columns_product(sum[odd], load_left<E, false>(left + (t + odd) * Matrix::kBlock, team.at), b, odd);
      }
      RowPair inverses{};
      if (Memory::kHasP || of_values) inverses = inverse(r);
      const int offset = team.at.pair ^ j * 8;
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float x[2], scaled[2];
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          x[e] = sum[0][2 * h + e] + sum[1][2 * h + e];
          if (r == s && tile_col(lane, j, e) > tile_row(lane, 2 * h)) x[e] = 0.f;
          scaled[e] = inverses.x[h] * x[e];
        }
        if (of_values)
          store_pair(m.scores[Memory::kW][pair] + offset + h * 8 * kTile, scaled);
        else if constexpr (Memory::kHasP)
          store_pair(m.scores[Memory::kP][pair] + offset + h * 8 * kTile, scaled);
        if (of_values || (Memory::kHasP && !kGradients)) continue;
        if constexpr (kScaled<E>) x[0] /= kGradientRange<E, kHead>, x[1] /= kGradientRange<E, kHead>;
        store_pair(m.scores[Memory::kPZ][pair] + offset + h * 8 * kTile, x);
      }
    }
  }

  // Sums of d_Z phi(q) over the rows of a tile from each row on.
  static __device__ Acc weighted_sums(const RowPair& d_z, const Split<E>& phi) {
    Acc weights;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float x = __shfl_sync(0xffffffffu, d_z.x[i / 2], (threadIdx.x % 4 * 2 + i % 2) * 4);
      weights.x[i / 2][i % 2] = weights.x[i / 2][2 + i % 2] = x;
    }
    keep_upper(weights);
    Acc d;
    add_product(d, to_split<E>(weights), as_right(transpose(phi)));
    return d;
  }
};

}  // namespace recgrela::cuda
