// What is made of a chunk's queries and keys: features, and the attention within the chunk and to a state.
#pragma once

#include "kernels/rela_team.cuh"

namespace recgrela::cuda {

// (cos, sin) for this lane's pairs of the own channels.
struct Angles {
  float2 x[2][2];  // [j][row / 8]
};

// This lane's place in the rotary table for the segment's chunk i; null without one.
template <typename E, int kHead>
__device__ const float* find_angle(const Team<E, kHead>& team, int i) {
  const RelaPlan& p = team.p;
  if (!p.rotary) return nullptr;
  return p.rotary + (team.segment.before + team.first_row(i) + team.lane / 4) * p.width() + team.head_channel() +
         team.own() + tile_col(team.lane, 0, 0);
}

// For a chunk of n rows.
template <typename E, int kHead>
__device__ Angles load_angles(const Team<E, kHead>& team, const float* place, int n) {
  Angles angles;
  const int width = static_cast<int>(team.p.width());
#pragma unroll
  for (int j = 0; j < 2; ++j)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      angles.x[j][h] = make_float2(1.f, 0.f);
      if (place && team.lane / 4 + 8 * h < n && team.in_head(team.own() + tile_col(team.lane, j, 0)))
        angles.x[j][h] = *reinterpret_cast<const float2*>(place + 8 * h * width + 8 * j);
    }
  return angles;
}

// R x
inline __device__ Acc rotate(const Acc& x, const Angles& angles) {
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
// R^-1 x
inline __device__ Acc rotate_back(const Acc& x, Angles angles) {
#pragma unroll
  for (int i = 0; i < 4; ++i) angles.x[i / 2][i % 2].y = -angles.x[i / 2][i % 2].y;
  return rotate(x, angles);
}

// phi(x) and R phi(x) of a chunk by rows: in shared memory, where they are after a barrier or, kInRegisters, those of
// the own channels in registers as well, which for a head of one tile are all.
template <typename E, int kHead, bool kInRegisters>
struct Features {
  const E *plain_tile, *rotated_tile;
  Acc plain_own, rotated_own;

  __device__ Operand<E> plain_operand(int t) const { return operand(plain_own, plain_tile, t); }
  __device__ Operand<E> rotated_operand(int t) const { return operand(rotated_own, rotated_tile, t); }
  // phi(x) of the own channels
  __device__ Acc plain(const Team<E, kHead>& team) const {
    if constexpr (kInRegisters) return plain_own;
    Acc f;
    team.load_pairs(f, plain_tile);
    return f;
  }

 private:
  __device__ static Operand<E> operand(const Acc& own, const E* tile, int t) {
    if constexpr (kInRegisters && kHead == kTile)
      return to_operand<E>(own);
    else
      return load_operand<E, false>(tile + t * kTile, Team<E, kHead>::kStride);
  }
};

// Of the n rows of x, zeros in the others; R phi(x) takes the place of x, where they are in shared memory.
template <typename E, int kHead, bool kInRegisters>
__device__ void make_features(const Team<E, kHead>& team, Features<E, kHead, kInRegisters>& f, E* x, E* plain,
                              const Angles& angles, int n, bool shared = true) {
  f.plain_tile = plain, f.rotated_tile = x;
  Acc y;
  team.load_pairs(y, x);
#pragma unroll
  for (int i = 0; i < 8; ++i) y.x[i / 4][i % 4] = phi(y.x[i / 4][i % 4]);
  if (n < kTile || team.p.head_dim < kHead) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const bool inside = tile_row(team.lane, i % 4) < n && team.in_head(team.own() + tile_col(team.lane, i / 4, 0));
      if (!inside) y.x[i / 4][i % 4] = 0.f;
    }
  }
  const Acc z = rotate(y, angles);
  if (shared) {
    team.store_pairs(plain, y);
    team.store_pairs(x, z);
  }
  if constexpr (kInRegisters) f.plain_own = y, f.rotated_own = z;
}

// A chunk's attention of own value channels, and n / denominator of each of its `rows` rows, zero for others; n is the
// chunk's count. Of a state of keys over n, state_of(t) is the operand of own value channels by tile t of key channels,
// sum_of(t) the sum of those. also(t, R phi(q)) is called with each tile of the queries. kUnroll: these need to know t
// when they are compiled.
// The weights within a chunk are multiplied by n / denominator before they become an operand of 16 bits.
template <bool kUnroll, typename E, int kHead, typename F, typename StateOf, typename SumOf, typename Also>
__device__ void attend(const Team<E, kHead>& team, int rows, float n, const F& q, const F& k, const E* v,
                       StateOf state_of, SumOf sum_of, Acc& o, RowPair& inverse, Also also) {
  using T = Team<E, kHead>;
  const bool causal = team.p.causal;
  const float factor = fast_reciprocal(n);
  Acc rotated, plain;
  float from_state[4] = {};
#pragma unroll(kUnroll ? T::kTiles : 1)
  for (int t = 0; t < T::kTiles; ++t) {
    limit_overlap<E, (T::kTiles > 2)>();
    const Operand<E> rq = q.rotated_operand(t);
    if (causal) mma(rotated, rq, k.rotated_operand(t));
    mma(o, rq, state_of(t));
    also(t, rq);
    limit_overlap<E, (T::kTiles > 2)>();
    const Operand<E> fq = q.plain_operand(t);
    if (causal) mma(plain, fq, k.plain_operand(t));
    mma_row(from_state, fq, sum_of(t));
  }
  if (causal) keep_lower(plain);
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    float denominator = from_state[2 * h];
    float count = n;
    if (causal) {
      denominator +=
          factor * quad_sum(plain.x[0][2 * h] + plain.x[0][2 * h + 1] + plain.x[1][2 * h] + plain.x[1][2 * h + 1]);
      count = n - static_cast<float>(kTile - 1 - tile_row(team.lane, 2 * h));
    }
    inverse.x[h] = fast_reciprocal(denominator + team.p.eps * (count * factor));
    if (tile_row(team.lane, 2 * h) >= rows) inverse.x[h] = 0.f;
  }
  scale_rows(o, inverse);
  if (causal) {
    keep_lower(rotated);
    scale_rows(rotated, inverse);
    Acc part;
    mma(part, to_operand<E>(rotated), load_operand<E, true>(v + team.own(), T::kStride));
    add_scaled(o, part, factor);
  }
}

// Moves a causal state on by a chunk.
template <typename E, int kHead, typename F>
__device__ void add_keys(const Team<E, kHead>& team, const F& k, const E* v, Acc (&state)[Team<E, kHead>::kTiles],
                         RowVector& sum) {
  using T = Team<E, kHead>;
  const Operand<E> values = load_operand<E, true>(v + team.own(), T::kStride);
#pragma unroll
  for (int t = 0; t < T::kTiles; ++t) {
    limit_overlap<E, (T::kTiles > 2)>();
    mma(state[t], values, load_operand<E, true>(k.rotated_tile + t * kTile, T::kStride));
  }
  add_tokens(sum, load_operand<E, true>(k.plain_tile + team.own(), T::kStride));
}

// Where the state before a segment is, or that of a bidirectional sequence; null: it is zero.
template <typename E, int kHead>
__device__ const float* state_before(const Team<E, kHead>& team) {
  const RelaPlan& p = team.p;
  if (!p.causal || team.segment.count > 1) return team.state(p.key_state);
  return p.initial_state ? team.sequence_state(p.initial_state) : nullptr;
}

// x * SiLU(g)
inline __device__ Acc gated(Acc x, const Acc& g) {
#pragma unroll
  for (int i = 0; i < 8; ++i) x.x[i / 4][i % 4] *= g.x[i / 4][i % 4] * sigmoid(g.x[i / 4][i % 4]);
  return x;
}

}  // namespace recgrela::cuda
