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

  GradientUnit unit;
  Matrix q, k, v, a;
  alignas(16) Part<E> scores[2][T::kPairs][kScoreTile];  // P, W
  alignas(16) Part<E> exchange[kExchange ? kHead * kHead : 8];
  // phi(q) and phi(k) of a lane, which it reads again to save registers.
  KeptTile<E> phi_q[T::kRowTiles][T::kThreads], phi_k[T::kRowTiles][T::kThreads];
  alignas(16) float conv_weights[kHead * (kMaxKernelSize + 1)];
  alignas(16) float shifted[T::kTiles][kShiftedRows * kTile];
  LaneChannels conv_sums[WideConvGradient<E, kHead>::kSharedSums];
  float denominators[T::kRows * T::kTiles], dots[T::kRows * T::kTiles];
};

// Scale of u = a / Z in float16, whose range is small: n / Z is about one over the number of channels.
template <typename E, int kHead>
constexpr float kGradientRange = kScaled<E> ? kHead : 1;

// Row tiles of sums at own channels.
template <int kRowTiles>
struct RowAccs {
  Acc x[kRowTiles];
};

template <typename E, int kHead, bool kGradients>
struct ReverseProducts {
  using T = GradientTeam<E, kHead>;
  using Memory = GradientMemory<E, kHead>;
  using Matrix = typename Memory::Matrix;
  using Rows = RowAccs<T::kRowTiles>;
  static constexpr int kTiles = T::kTiles, kRowTiles = T::kRowTiles, kRows = T::kRows;

  const T& team;
  Memory& m;
  const RelaPlan& p;

  // The chunk that is processed.
  typename T::Chunk chunk;
  float factor = 1, num_keys = 0;
  RowPair inverses[kRowTiles];  // n / Z of the lane's rows

  __device__ ReverseProducts(const T& team, Memory& m) : team(team), m(m), p(team.p) {}

  // n / Z of the lane's rows of a row tile, zero after the last row; after barrier 1.
  __device__ RowPair inverse(int r) const {
    RowPair z = team.get_row_sums(m.denominators, r);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int i = r * kTile + team.lane / 4 + 8 * h;
      const float keys = p.causal ? num_keys - static_cast<float>(kRows - 1 - i) : num_keys;
      z.x[h] = i < chunk.n ? fast_reciprocal(z.x[h] + p.eps * (keys * factor)) : 0.f;
    }
    return z;
  }

  // Sums of phi(k) over n up to each row of a tile, by which queries are multiplied to give their denominators; z, the
  // sums before the tile, becomes those after it.
  __device__ Acc next_key_sums(LaneChannels& z, const KeptTile<E>& phi_k) const {
    const Acc running = running_sums<E>(phi_k.split());
    Acc sums = equal_rows(z);
    add_scaled(sums, running, factor);
    add_scaled(z, channels_of_row<kTile - 1>(running), factor);
    return sums;
  }

  // Stops the compiler from loading more operands ahead than registers can hold, before step t of a product.
  static __device__ void limit(int t) {
    if (sizeof(E) == 4 || (kTiles == 8 && t % 4 == 0)) __syncwarp();
  }

  // out += rows B^T, where operand(t) is B's tile t.
  template <typename Operand>
  __device__ void multiply(Rows& out, Matrix& rows, Operand operand) const {
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      limit(t);
      const RightSplit<E> b = operand(t);
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r) add_product(out.x[r], load_left<E, false>(rows.tile(t, r), team.at), b);
    }
  }

  // out += factor * scores * rows at own channels: row tiles up to each one, or from each one on and transposed scores
  // if kTranspose.
  template <bool kTranspose>
  __device__ void add_scores(Rows& out, int which, Matrix& rows) const {
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
      Acc part;
      Acc& to = kScaled<E> ? part : out.x[r];
#pragma unroll
      for (int s = 0; s < kRowTiles; ++s) {
        if (kTranspose ? s < r : s > r) continue;
        const int pair = kTranspose ? s * (s + 1) / 2 + r : r * (r + 1) / 2 + s;
        add_product(to, load_left<E, kTranspose>(m.scores[which][pair], team.at),
                    load_right<E, true>(rows.tile(team.warp, s), team.at));
      }
      if constexpr (kScaled<E>) add_scaled(out.x[r], part, factor);
    }
  }

  // Computes this warp's share of the scores.
  __device__ void compute_scores() const {
    constexpr int kJobs = (kGradients ? 2 : 1) * T::kPairs;
#pragma unroll 1
    for (int job = team.warp; job < kJobs; job += kTiles) {
      const int which = job / T::kPairs, pair = job % T::kPairs;
      const int r = pair < 1 ? 0 : pair < 3 ? 1 : pair < 6 ? 2 : 3, s = pair - r * (r + 1) / 2;
      Matrix& left = which ? m.a : m.q;
      Matrix& right = which ? m.v : m.k;
      Acc parts[2];
#pragma unroll(sizeof(E) == 4 ? 2 : kTiles)
      for (int t = 0; t < kTiles; ++t) {
        limit(t);
        add_product(parts[t % 2], load_left<E, false>(left.tile(t, r), team.at),
                    load_right<E, false>(right.tile(t, s), team.at));
      }
      add_scaled(parts[0], parts[1], 1.f);
      if (r == s) keep_lower(parts[0]);
      scale_rows(parts[0], inverse(r));
      store_tile<E>(m.scores[which][pair], parts[0], team.at);
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
