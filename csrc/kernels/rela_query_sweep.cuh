// The backward's first sweep, forward along the segment: the gradients of queries and gate, and of each row what the
// second sweep needs.
#pragma once

#include "kernels/rela_backward_memory.cuh"

namespace recgrela::cuda {

template <typename E, int kHead>
__device__ void query_sweep(const Team<E, kHead>& team, BackwardMemory<E, kHead>& memory) {
  using T = Team<E, kHead>;
  const RelaPlan& p = team.p;
  const Segment& segment = team.segment;
  const bool gated = p.g.data;
  Acc state[T::kTiles], by_key[T::kTiles];
  RowVector sum;
  E* const dy_gated = reinterpret_cast<E*>(memory.conv_grad);  // which the other sweep has use for
  team.load_state(state_before(team), state);
  team.load_state_by_key(state_before(team), by_key);
  team.load_sum(state_before(team), sum);

  auto copy = [&](int64_t chunk, int stage) {
    const int64_t t0 = segment.begin + chunk * kTile;
    auto& m = memory.stages[stage];
    team.copy_chunk(m.q, p.q, t0);
    if (p.causal) team.copy_chunk(m.k, p.k, t0);
    team.copy_values(m.v, t0);
    if (gated) team.copy_chunk(m.g, p.g, t0);
    team.copy_chunk(m.dy, p.dy, t0);
  };
  auto use = [&](int64_t chunk, int stage) {
    const int64_t t0 = segment.begin + chunk * kTile;
    const int n = static_cast<int>(segment.end - t0 < kTile ? segment.end - t0 : kTile);
    const float factor = 1.f / team.chunk_count(t0);
    auto& m = memory.stages[stage];
    team.features(t0, n, m.q, memory.fq, p.causal ? m.k : nullptr, memory.fk);
    Acc a, d_gate;  // dy through the gate; the gradient of the gate's input, but for the factor of the output
    team.load_pairs(a, m.dy);
    if (gated) {
      Acc g;
      team.load_pairs(g, m.g);
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const float dy = a.x[i / 4][i % 4], x = g.x[i / 4][i % 4], s = sigmoid(x);
        a.x[i / 4][i % 4] = dy * x * s;
        d_gate.x[i / 4][i % 4] = dy * silu_grad(x, s);
      }
    }
    team.store_pairs(dy_gated, a);
    if constexpr (T::kTiles > 1) team.publish(memory.z, sum);
    team.sync();

    Acc o;
    RowPair inverse, dot;
    attend(team, t0, m.q, memory.fq, m.k, memory.fk, m.v, memory.z, sum, state, o, inverse);
#pragma unroll
    for (int i = 0; i < 8; ++i) dot.x[i / 2 % 2] += a.x[i / 4][i % 4] * o.x[i / 4][i % 4];
    if (gated) {
      if (p.conv_width > 0) {
        Acc c;
        team.convolve(c, m.v, memory.taps);
#pragma unroll
        for (int i = 0; i < 8; ++i) o.x[i / 4][i % 4] += c.x[i / 4][i % 4] * sigmoid(c.x[i / 4][i % 4]);
      }
#pragma unroll
      for (int i = 0; i < 8; ++i) d_gate.x[i / 4][i % 4] *= o.x[i / 4][i % 4];
      team.store_pairs(p.dg, t0, n, d_gate);
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) dot.x[h] = quad_sum(dot.x[h]);
    if constexpr (T::kWarps > 1) {
      if (team.lane % 4 == 0) {
        memory.row_sums[team.warp * kTile + team.lane / 4] = dot.x[0];
        memory.row_sums[team.warp * kTile + team.lane / 4 + 8] = dot.x[1];
      }
      team.sync();
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        dot.x[h] = 0.f;
#pragma unroll 1
        for (int w = 0; w < T::kWarps; ++w) dot.x[h] += memory.row_sums[w * kTile + team.lane / 4 + 8 * h];
      }
    }
    RowPair d_denominator;  // n dZ
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      d_denominator.x[h] = -dot.x[h] * inverse.x[h];
      const int row = tile_row(team.lane, 2 * h);
      if (team.warp == 0 && team.lane % 4 == 0 && row < n) {
        float* const scales = p.row_scales + ((segment.row0 + t0 + row) * p.num_heads + team.head) * 2;
        scales[0] = inverse.x[h], scales[1] = d_denominator.x[h];
      }
    }

    // d(R phi(q)) and the running sum of phi(k), of own key channels
    Acc rotated, running;
#pragma unroll
    for (int t = 0; t < T::kTiles; ++t) {
      limit_overlap<E, T::kTiles>();
      mma_split(rotated, load_operand<E, false>(dy_gated + t * kTile, T::kStride), by_key[t], factor);
    }
    scale_rows(rotated, inverse);
    if (p.causal) {
      Acc products, lower, part;
#pragma unroll
      for (int t = 0; t < T::kTiles; ++t) {
        limit_overlap<E, T::kTiles>();
        mma(products, load_operand<E, false>(dy_gated + t * kTile, T::kStride),
            load_operand<E, false>(m.v + t * kTile, T::kStride));
      }
      keep_lower(products, team.lane);
      scale_rows(products, inverse);
#pragma unroll
      for (int i = 0; i < 8; ++i) lower.x[i / 4][i % 4] = 1.f;
      keep_lower(lower, team.lane);
      mma(part, to_operand<E>(products), load_operand<E, true>(m.k + team.own(), T::kStride));
      add_scaled(rotated, part, factor);
      mma<true>(running, to_operand<E>(lower), load_operand<E, true>(memory.fk + team.own(), T::kStride));
    }
    rotate_back(team, rotated, t0, n);
    Acc f;
    team.load_pairs(f, memory.fq);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int j = i / 4, e = i % 4;
      const float dz = d_denominator.x[i / 2 % 2] * factor;
      rotated.x[j][e] += dz * (sum.x[2 * j + e % 2] + running.x[j][e]);
      rotated.x[j][e] *= phi_grad(f.x[j][e]);
    }
    team.store_pairs(p.dq, t0, n, rotated);
    if (p.causal) {
      const Operand<E> keys = load_operand<E, true>(m.k + team.own(), T::kStride);
#pragma unroll
      for (int t = 0; t < T::kTiles; ++t) {
        limit_overlap<E, T::kTiles>();
        mma(by_key[t], keys, load_operand<E, true>(m.v + t * kTile, T::kStride));
      }
      add_keys(team, m.k, memory.fk, m.v, state, sum);
    }
  };
  pipeline(team, (segment.end - segment.begin + kTile - 1) / kTile, false, copy, use);
}

}  // namespace recgrela::cuda
