// Features of a chunk's queries and keys, and attention within the chunk and to a state.
#pragma once

#include <type_traits>

#include "kernels/common/activations.cuh"
#include "kernels/gated_rela/pipeline.cuh"

namespace recgrela::cuda {

// Scale of the backward's u = a / Z in float16, whose range is small: n / Z is about one over the number of channels.
// Sums of products over channels are divided by it before they enter another product.
template <typename E, int kHead>
constexpr float kRange = std::is_same_v<E, fp16> ? kHead : 1;

// (cos, sin) for the pairs of channels that this lane holds.
struct Angles {
  float2 x[2][2];  // [j][row / 8], as in Acc
};

// This lane's first entry of the rotary table for chunk i; null without a table.
template <typename E, int kHead>
__device__ const float* find_angle(const Team<E, kHead>& team, int i) {
  const RelaPlan& p = team.p;
  if (!p.rotary) return nullptr;
  return p.rotary + (team.segment.position + int64_t{i} * kTile + team.lane / 4) * p.width() + team.head_channel() +
         team.own() + tile_col(team.lane, 0, 0);
}

// Loads the angles of a chunk of n rows; rows after them are not rotated.
template <typename E, int kHead>
__device__ Angles load_angles(const Team<E, kHead>& team, const float* angle, int n) {
  Angles angles;
  const int width = static_cast<int>(team.p.width());
#pragma unroll
  for (int j = 0; j < 2; ++j)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      angles.x[j][h] = make_float2(1.f, 0.f);
      if (angle && team.lane / 4 + 8 * h < n && team.in_head(team.own() + tile_col(team.lane, j, 0)))
        angles.x[j][h] = *reinterpret_cast<const float2*>(angle + 8 * h * width + 8 * j);
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

// phi(x) and R phi(x) of a chunk by rows, in shared memory; readable after a barrier. kInRegisters: R phi(x) is in
// registers too, for heads of one tile.
template <typename E, int kHead, bool kInRegisters = false>
struct Features {
  static_assert(!kInRegisters || kHead == kTile);
  const E *plain, *rotated;
  Acc rotated_own;

  // Tile t of R phi(x) by rows.
  __device__ Operand<E> operand(int t) const {
    if constexpr (kInRegisters)
      return to_operand<E>(rotated_own);
    else
      return load_operand<E, false>(rotated + t * kTile, Team<E, kHead>::kStride);
  }
};

// Computes the features of n rows of x and zeros for the rows after them. Stores phi(x) in `plain` and R phi(x) in x;
// if `plain` is null, it stores only R phi(x), and nothing if kInRegisters. Returns phi(x) of own channels.
template <typename E, int kHead, bool kInRegisters>
__device__ Acc make_features(const Team<E, kHead>& team, Features<E, kHead, kInRegisters>& f, E* x, E* plain,
                             const Angles& angles, int n) {
  f.plain = plain, f.rotated = x;
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
  if (plain) team.store_pairs(plain, y);
  if (plain || !kInRegisters) team.store_pairs(x, z);
  if constexpr (kInRegisters) f.rotated_own = z;
  return y;
}

// Sums over all channels of the head, for this lane's rows.
template <typename E, int kHead>
struct RowSums {
  static constexpr int kWarps = Team<E, kHead>::kWarps;
  float shared[kWarps > 1 ? kWarps * kTile : 1];

  // Publishes a . b over own channels; after a barrier, `get` returns the sums.
  __device__ RowPair put(const Team<E, kHead>& team, const Acc& a, const Acc& b) {
    RowPair sum;
#pragma unroll
    for (int i = 0; i < 8; ++i) sum.x[i / 2 % 2] += a.x[i / 4][i % 4] * b.x[i / 4][i % 4];
#pragma unroll
    for (int h = 0; h < 2; ++h) sum.x[h] = quad_sum(sum.x[h]);
    if constexpr (kWarps > 1) {
      if (team.lane % 4 == 0) {
        shared[team.warp * kTile + team.lane / 4] = sum.x[0];
        shared[team.warp * kTile + team.lane / 4 + 8] = sum.x[1];
      }
    }
    return sum;
  }
  __device__ RowPair get(const Team<E, kHead>& team, RowPair own) const {
    if constexpr (kWarps == 1) return own;
    RowPair sum;
#pragma unroll 1
    for (int w = 0; w < kWarps; ++w) {
      sum.x[0] += shared[w * kTile + team.lane / 4];
      sum.x[1] += shared[w * kTile + team.lane / 4 + 8];
    }
    return sum;
  }
};

// Sums of phi(k) up to each row of a chunk, within the chunk, by own key channels; zeros if bidirectional.
template <typename E, int kHead, typename F>
__device__ Acc running_keys(const Team<E, kHead>& team, const F& k) {
  Acc running;
  if (team.p.causal) {
    Acc lower;
#pragma unroll
    for (int i = 0; i < 8; ++i) lower.x[i / 4][i % 4] = 1.f;
    keep_lower(lower);
    running = product<true>(to_operand<E>(lower), load_operand<E, true>(k.plain + team.own(), Team<E, kHead>::kStride));
  }
  return running;
}
// sum + factor * running: the sums of phi(k) by which queries are multiplied to give their denominators.
inline __device__ Acc with_state(Acc running, const RowVector& sum, float factor) {
#pragma unroll
  for (int i = 0; i < 8; ++i) running.x[i / 4][i % 4] = sum.x[i / 4 * 2 + i % 2] + factor * running.x[i / 4][i % 4];
  return running;
}

// Attention of a chunk of `rows` rows, by own value channels.
//
// Args:
//   n            number of keys, as Team::num_keys
//   denominator  phi(q) . (the sum of phi(k)) / n of each row
//   state_of     state_of(t) returns the state of keys over n, own value channels by tile t of key channels
//   inverse      receives n / (denominator of the row), zero after the last row
//   also         also(t, R phi(q)) is called for each tile of the queries
//
// kUnroll: state_of and also need t at compile time. Weights within a chunk are multiplied by n / denominator before
// they become an operand of 16 bits.
template <bool kUnroll, typename E, int kHead, typename F, typename StateOf, typename Also>
__device__ Acc attend(const Team<E, kHead>& team, int rows, float n, const RowPair& denominator, const F& q, const F& k,
                      const E* v, StateOf state_of, RowPair& inverse, Also also) {
  using T = Team<E, kHead>;
  constexpr bool kOne = T::kTiles == 1;
  const bool causal = team.p.causal;
  const float factor = fast_reciprocal(n);
  Acc o, weights;
#pragma unroll(kUnroll ? T::kTiles : 1)
  for (int t = 0; t < T::kTiles; ++t) {
    limit_overlap<E, (T::kTiles > 2)>();
    const Operand<E> query = q.operand(t);
    if (causal) mma<kOne>(weights, query, k.operand(t));
    mma<kOne>(o, query, state_of(t));
    also(t, query);
  }
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int row = tile_row(team.lane, 2 * h);
    const float num_keys = causal ? n - static_cast<float>(kTile - 1 - row) : n;
    inverse.x[h] = row < rows ? fast_reciprocal(denominator.x[h] + team.p.eps * (num_keys * factor)) : 0.f;
  }
  scale_rows(o, inverse);
  if (causal) {
    keep_lower(weights);
    scale_rows(weights, inverse);
    add_scaled(o, product(to_operand<E>(weights), load_operand<E, true>(v + team.own(), T::kStride)), factor);
  }
  return o;
}

// Adds R phi(k) (x) v of a chunk to the state of keys, by own value channels.
template <typename E, int kHead, typename F>
__device__ void add_keys(const Team<E, kHead>& team, const F& k, const E* v, Acc (&state)[Team<E, kHead>::kTiles]) {
  using T = Team<E, kHead>;
  const Operand<E> values = load_operand<E, true>(v + team.own(), T::kStride);
#pragma unroll
  for (int t = 0; t < T::kTiles; ++t) {
    limit_overlap<E, (T::kTiles > 2)>();
    mma(state[t], values, load_operand<E, true>(k.rotated + t * kTile, T::kStride));
  }
}

// State of keys before a causal segment, or of a whole bidirectional sequence; null: zeros.
template <typename E, int kHead>
__device__ const float* state_before(const Team<E, kHead>& team) {
  const RelaPlan& p = team.p;
  if (!p.causal || team.segment.count > 1) return team.state(p.key_states);
  return p.initial_kv_state ? team.sequence_state(p.initial_kv_state) : nullptr;
}

// x * SiLU(g)
inline __device__ Acc gated(Acc x, const Acc& g) {
#pragma unroll
  for (int i = 0; i < 8; ++i) x.x[i / 4][i % 4] *= g.x[i / 4][i % 4] * sigmoid(g.x[i / 4][i % 4]);
  return x;
}

}  // namespace recgrela::cuda
