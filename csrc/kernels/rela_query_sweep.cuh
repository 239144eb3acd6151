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
  team.load_state(state_before(team), state);
  team.load_state_by_key(state_before(team), by_key);
  team.load_sum(state_before(team), sum);

  auto copy = [&](int64_t chunk, int stage) {
    const int64_t t0 = segment.begin + chunk * kTile;
    auto& m = memory.stages[stage];
    team.copy_rows(m.q, p.q, t0, segment.length);
    if (p.causal) team.copy_rows(m.k, p.k, t0, segment.length);
    team.copy_values(m.v, t0, segment.length);
    if (gated) team.copy_rows(m.g, p.g, t0, segment.length);
    team.copy_rows(m.dy, p.dy, t0, segment.length);
  };
  auto use = [&](int64_t chunk, int stage) {
    const int64_t t0 = segment.begin + chunk * kTile;
    const int n = static_cast<int>(segment.end - t0 < kTile ? segment.end - t0 : kTile);
    const float factor = 1.f / team.chunk_count(t0);
    auto& m = memory.stages[stage];
    team.features(m.q, memory.fq, t0, n);
    if (p.causal) team.features(m.k, memory.fk, t0, n);
    team.gate_gradient(memory.a, m.dy, gated ? m.g : nullptr, nullptr);
    team.publish(memory.z, sum);
    team.sync();

    Acc numerator;
    RowPair inverse, dot;
    attend(team, t0, m.q, memory.fq, m.k, memory.fk, m.v, memory.z, state, numerator, inverse);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int j = i / 2, h = i % 2, row = tile_row(team.lane, 2 * h), column = team.own() + tile_col(team.lane, j, 0);
      const float2 dy = load2(m.dy + row * T::kStride + column);
      const float2 g = gated ? load2(m.g + row * T::kStride + column) : make_float2(0.f, 0.f);
      const Gate gate_x(dy.x, g.x, gated), gate_y(dy.y, g.y, gated);
      const float ox = numerator.x[j][2 * h] * inverse.x[h], oy = numerator.x[j][2 * h + 1] * inverse.x[h];
      dot.x[h] += gate_x.a * ox + gate_y.a * oy;
      if (gated) {
        float2 c = make_float2(0.f, 0.f);
        if (p.conv_width > 0) {
          c = team.convolve(m.v, memory.taps, row, column);
          c = make_float2(c.x * sigmoid(c.x), c.y * sigmoid(c.y));
        }
        if (row < n && column < p.head_dim)
          store2(static_cast<E*>(p.dg.data) + (segment.row0 + t0 + row) * p.dg.stride + team.head_channel() + column,
                 gate_x.factor * (ox + c.x), gate_y.factor * (oy + c.y));
      }
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

    // d(R phi(q)) Z and the running sum of phi(k), of own key channels
    Acc rotated, running;
    if (p.causal) {
      Acc products, lower;
#pragma unroll
      for (int t = 0; t < T::kTiles; ++t)
        mma(products, load_operand<E, false>(memory.a + t * kTile, T::kStride),
            load_operand<E, false>(m.v + t * kTile, T::kStride));
      keep_lower(products, team.lane);
#pragma unroll
      for (int i = 0; i < 8; ++i) lower.x[i / 4][i % 4] = 1.f;
      keep_lower(lower, team.lane);
      mma(rotated, to_operand<E>(products), load_operand<E, true>(m.k + team.own(), T::kStride));
      scale(rotated, factor);
      mma(running, to_operand<E>(lower), load_operand<E, true>(memory.fk + team.own(), T::kStride));
    }
#pragma unroll
    for (int t = 0; t < T::kTiles; ++t)
      mma_split(rotated, load_operand<E, false>(memory.a + t * kTile, T::kStride), by_key[t], factor);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int j = i / 2, h = i % 2, row = tile_row(team.lane, 2 * h), column = team.own() + tile_col(team.lane, j, 0);
      if (row >= n || column >= p.head_dim) continue;
      float2 d = make_float2(rotated.x[j][2 * h] * inverse.x[h], rotated.x[j][2 * h + 1] * inverse.x[h]);
      d = rotate_back(team, d, t0 + row, column);
      const float dz = d_denominator.x[h] * factor;
      d.x += dz * (sum.x[2 * j] + running.x[j][2 * h]);
      d.y += dz * (sum.x[2 * j + 1] + running.x[j][2 * h + 1]);
      const float2 f = load2(memory.fq + row * T::kStride + column);
      store2(static_cast<E*>(p.dq.data) + (segment.row0 + t0 + row) * p.dq.stride + team.head_channel() + column,
             d.x * phi_grad(f.x), d.y * phi_grad(f.y));
    }
    if (p.causal) {
      const Operand<E> keys = load_operand<E, true>(m.k + team.own(), T::kStride);
#pragma unroll
      for (int t = 0; t < T::kTiles; ++t) mma(by_key[t], keys, load_operand<E, true>(m.v + t * kTile, T::kStride));
      add_keys(team, m.k, memory.fk, m.v, state, sum);
    }
  };
  pipeline(team, (segment.end - segment.begin + kTile - 1) / kTile, false, copy, use);
}

}  // namespace recgrela::cuda
