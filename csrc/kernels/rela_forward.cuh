// The forward of gated_rela for a segment whose state before it (causal) or as a whole (bidirectional) is known.
//
// With n the count of a chunk's last row (of the sequence, if bidirectional), per chunk of 16 tokens, whose rows all
// meet (a number that is not finite reaches the rows before it in its chunk):
//   numerator / n   = (R phi(q) (R phi(k))^T, j <= i) v / n + R phi(q) (S / n)
//   denominator / n = (phi(q) phi(k)^T, j <= i) 1 / n + phi(q) (z / n)
// where the first terms are only there in the causal form, which then moves S and z on by the chunk.
#pragma once

#include "kernels/rela_team.cuh"

namespace recgrela::cuda {

template <typename E, int kHead>
struct ForwardMemory {
  using T = Team<E, kHead>;
  struct alignas(16) Stage {
    E q[T::kTileSize], k[T::kTileSize], halo[T::kHaloSize], v[T::kTileSize], g[T::kTileSize];
  };
  Segment segment;
  Stage stages[T::kStages];
  E fq[T::kTileSize], fk[T::kTileSize];
  float z[T::kWarps > 1 ? kHead : 4], taps[kHead * (kMaxTaps + 1)];
};

// A chunk's attention of own value channels, and n / denominator of each row, from features in shared memory.
// The weights within a chunk are multiplied by n / denominator before they become an operand of 16 bits.
template <typename E, int kHead>
__device__ void attend(const Team<E, kHead>& team, int64_t t0, const E* rq, const E* fq, const E* rk, const E* fk,
                       const E* v, const float* z, const RowVector& sum, const Acc (&state)[Team<E, kHead>::kTiles],
                       Acc& o, RowPair& inverse) {
  using T = Team<E, kHead>;
  const bool causal = team.p.causal;
  const float n = team.chunk_count(t0), factor = 1.f / n;
  Acc rotated, plain;
  float from_state[4] = {};
#pragma unroll
  for (int t = 0; t < T::kTiles; ++t) {
    limit_overlap<E, T::kTiles>();
    const Operand<E> q = load_operand<E, false>(rq + t * kTile, T::kStride);
    if (causal) mma(rotated, q, load_operand<E, false>(rk + t * kTile, T::kStride));
    mma_split(o, q, state[t], factor);
    const Operand<E> f = load_operand<E, false>(fq + t * kTile, T::kStride);
    if (causal) mma(plain, f, load_operand<E, false>(fk + t * kTile, T::kStride));
    mma_row(from_state, f, T::kTiles == 1 ? sum : team.row_vector(z + t * kTile), factor);
  }
  if (causal) keep_lower(plain, team.lane);
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    float denominator = from_state[2 * h];
    float count = n;
    if (causal) {
      denominator +=
          factor * quad_sum(plain.x[0][2 * h] + plain.x[0][2 * h + 1] + plain.x[1][2 * h] + plain.x[1][2 * h + 1]);
      count = n - static_cast<float>(kTile - 1 - tile_row(team.lane, 2 * h));
    }
    inverse.x[h] = 1.f / (denominator + team.p.eps * (count * factor));
  }
  scale_rows(o, inverse);
  if (causal) {
    keep_lower(rotated, team.lane);
    scale_rows(rotated, inverse);
    Acc part;
    mma(part, to_operand<E>(rotated), load_operand<E, true>(v + team.own(), T::kStride));
    add_scaled(o, part, factor);
  }
}

// Moves a causal state on by a chunk.
template <typename E, int kHead>
__device__ void add_keys(const Team<E, kHead>& team, const E* rk, const E* fk, const E* v,
                         Acc (&state)[Team<E, kHead>::kTiles], RowVector& sum) {
  using T = Team<E, kHead>;
  const Operand<E> values = load_operand<E, true>(v + team.own(), T::kStride);
#pragma unroll
  for (int t = 0; t < T::kTiles; ++t) {
    limit_overlap<E, T::kTiles>();
    mma(state[t], values, load_operand<E, true>(rk + t * kTile, T::kStride));
  }
  add_tokens(sum, load_operand<E, true>(fk + team.own(), T::kStride));
}

// Where the state before a segment is, or that of a bidirectional sequence; null: it is zero.
template <typename E, int kHead>
__device__ const float* state_before(const Team<E, kHead>& team) {
  const RelaPlan& p = team.p;
  if (!p.causal || team.segment.count > 1) return team.state(p.key_state);
  return p.initial_state ? team.sequence_state(p.initial_state) : nullptr;
}

template <typename E, int kHead>
__device__ void store_final_values(const Team<E, kHead>& team) {
  using T = Team<E, kHead>;
  const RelaPlan& p = team.p;
  const int rows = p.conv_width - 1;
  const int64_t width = p.width();
  const E* const initial = static_cast<const E*>(p.initial_values);
  for (int i = team.thread; i < rows * p.head_dim; i += 32 * T::kWarps) {
    const int row = i / p.head_dim;
    const int64_t channel = team.head_channel() + i % p.head_dim, t = team.segment.length - rows + row;
    E x = from_float<E>(0.f);
    if (t >= 0)
      x = static_cast<const E*>(p.v.data)[(team.segment.row0 + t) * p.v.stride + channel];
    else if (initial)
      x = initial[(team.segment.sequence * rows + rows + t) * width + channel];
    static_cast<E*>(p.final_values)[(team.segment.sequence * rows + row) * width + channel] = x;
  }
}

template <typename E, int kHead>
__global__ void __launch_bounds__(Team<E, kHead>::kThreads, Team<E, kHead>::kForwardBlocks)
    forward_kernel(const RelaPlan p) {
  using T = Team<E, kHead>;
  auto& memory = team_memory<ForwardMemory<E, kHead>, T>();
  T team(p, memory.segment);
  if (!team.find_work(memory.segment)) return;
  const Segment& segment = team.segment;
  team.load_taps(memory.taps);

  Acc state[T::kTiles];
  RowVector sum;
  team.load_state(state_before(team), state);
  team.load_sum(state_before(team), sum);

  auto copy = [&](int64_t chunk, int stage) {
    const int64_t t0 = segment.begin + chunk * kTile;
    auto& m = memory.stages[stage];
    team.copy_chunk(m.q, p.q, t0);
    if (p.causal) team.copy_chunk(m.k, p.k, t0);
    team.copy_values(m.v, t0);
    if (p.g.data) team.copy_chunk(m.g, p.g, t0);
  };
  auto use = [&](int64_t chunk, int stage) {
    const int64_t t0 = segment.begin + chunk * kTile;
    const int n = static_cast<int>(segment.end - t0 < kTile ? segment.end - t0 : kTile);
    auto& m = memory.stages[stage];
    team.features(t0, n, m.q, memory.fq, p.causal ? m.k : nullptr, memory.fk);
    if constexpr (T::kTiles > 1) team.publish(memory.z, sum);
    team.sync();

    Acc y;
    RowPair inverse;
    attend(team, t0, m.q, memory.fq, m.k, memory.fk, m.v, memory.z, sum, state, y, inverse);
    if (p.conv_width > 0) {
      Acc c;
      team.convolve(c, m.v, memory.taps);
#pragma unroll
      for (int i = 0; i < 8; ++i) y.x[i / 4][i % 4] += c.x[i / 4][i % 4] * sigmoid(c.x[i / 4][i % 4]);
    }
    if (p.g.data) {
      Acc g;
      team.load_pairs(g, m.g);
#pragma unroll
      for (int i = 0; i < 8; ++i) y.x[i / 4][i % 4] *= g.x[i / 4][i % 4] * sigmoid(g.x[i / 4][i % 4]);
    }
    team.store_pairs(p.y, t0, n, y);
    if (p.causal) add_keys(team, m.k, memory.fk, m.v, state, sum);
  };
  team.sync();
  pipeline(team, (segment.end - segment.begin + kTile - 1) / kTile, false, copy, use);

  if (p.final_state && segment.index + 1 == segment.count) {
    float* const out = team.sequence_state(p.final_state);
    team.store_state(out, state);
    team.store_sum(out, sum);
    if (p.conv_width > 1) store_final_values(team);
    if (team.head == 0 && team.thread == 0) p.final_count[segment.sequence] = segment.before + segment.length;
  }
}

}  // namespace recgrela::cuda
