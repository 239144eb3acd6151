// The backward's second sweep, in reverse along the segment: the gradients of keys, values and the convolution's taps.
#pragma once

#include "kernels/rela_backward_memory.cuh"

namespace recgrela::cuda {

// The gradients of the taps and the bias: lane l has those of own channel l % 16, two taps each half of the warp.
template <typename E, int kHead>
struct TapGradients {
  using T = Team<E, kHead>;
  float x[2] = {}, bias = 0.f;

  // From a chunk's values and gradients of the convolution's output, in shared memory.
  __device__ void add(const T& team, const E* v, const float* conv_grad, int conv_stride) {
    const int channel = team.own() + team.lane % kTile, tap = team.lane / kTile * 2;
    float oldest = to_float(v[(tap - kHalo) * T::kStride + channel]);
#pragma unroll
    for (int row = 0; row < kTile; ++row) {
      const float d = conv_grad[row * conv_stride + channel];
      const float next = to_float(v[(row + tap + 1 - kHalo) * T::kStride + channel]);
      x[0] += d * oldest;
      x[1] += d * next;
      bias += d;
      oldest = next;
    }
  }

  __device__ void store(const T& team) const {
    const int channel = team.own() + team.lane % kTile, tap = team.lane / kTile * 2;
    if (channel >= team.p.head_dim) return;
    float* const out =
        team.p.conv_partial + (team.segment.slot * team.p.width() + team.head_channel() + channel) * (kMaxTaps + 1);
    out[tap] = x[0], out[tap + 1] = x[1];
    if (tap == 0) out[kMaxTaps] = bias;
  }
};

template <typename E, int kHead>
__device__ void key_sweep(const Team<E, kHead>& team, BackwardMemory<E, kHead>& memory) {
  using T = Team<E, kHead>;
  constexpr int kConvStride = BackwardMemory<E, kHead>::kConvStride;
  const RelaPlan& p = team.p;
  const Segment& segment = team.segment;
  const bool gated = p.g.data, convolves = p.conv_width > 0;
  const int history = p.conv_width - 1;
  const E* const final_grad = convolves ? static_cast<const E*>(p.final_values_grad) : nullptr;

  const float* before = nullptr;  // the sums of what comes after, that is
  if (!p.causal || segment.count > 1)
    before = team.state(p.query_state);
  else if (p.final_state_grad)
    before = team.sequence_state(p.final_state_grad);
  Acc state[T::kTiles], by_key[T::kTiles];
  RowVector sum;
  team.load_state(before, state);
  team.load_state_by_key(before, by_key);
  team.load_sum(before, sum);
  TapGradients<E, kHead> taps;
  for (int i = team.thread; i < kHalo * kConvStride; i += 32 * T::kWarps)
    memory.conv_grad[kTile * kConvStride + i] = 0.f;

  // The convolution's gradient at the segment's last rows needs the kHalo rows behind them: a chunk of their own.
  const int64_t chunks = (segment.end - segment.begin + kTile - 1) / kTile;
  const int64_t behind = history > 0 && segment.end < segment.length;
  auto copy = [&](int64_t chunk, int stage) {
    const int64_t t0 = segment.begin + chunk * kTile;
    auto& m = memory.stages[stage];
    if (p.causal) team.copy_chunk(m.q, p.q, t0);
    team.copy_chunk(m.k, p.k, t0);
    team.copy_values(m.v, t0);
    if (gated) team.copy_chunk(m.g, p.g, t0);
    team.copy_chunk(m.dy, p.dy, t0);
  };
  auto use = [&](int64_t chunk, int stage) {
    const int64_t t0 = segment.begin + chunk * kTile;
    const bool own_rows = chunk < chunks;
    const int n = static_cast<int>(segment.length - t0 < kTile ? segment.length - t0 : kTile);
    const float factor = 1.f / team.chunk_count(t0);
    auto& m = memory.stages[stage];

    if (p.causal && own_rows) {
      team.load_scales(memory.scales, t0, n);
      team.sync();
    }
    Acc a;  // dy through the gate
    team.load_pairs(a, m.dy);
    if (gated) {
      Acc g;
      team.load_pairs(g, m.g);
#pragma unroll
      for (int i = 0; i < 8; ++i) a.x[i / 4][i % 4] *= g.x[i / 4][i % 4] * sigmoid(g.x[i / 4][i % 4]);
    }
    if (convolves) {
      Acc c;
      team.convolve(c, m.v, memory.taps);
      team.for_each_pair([&](int row, int channel, int j, int e) {
        const float x = c.x[j][e], y = c.x[j][e + 1];
        store2(memory.conv_grad + row * kConvStride + channel, a.x[j][e] * silu_grad(x, sigmoid(x)),
               a.x[j][e + 1] * silu_grad(y, sigmoid(y)));
      });
    }
    if (own_rows) {
      team.features(t0, n, m.k, memory.fk, p.causal ? m.q : nullptr, memory.fq);
      if (p.causal) {  // u n, in place
        const RowPair scales = {memory.scales[2 * tile_row(team.lane, 0)], memory.scales[2 * tile_row(team.lane, 2)]};
#pragma unroll
        for (int i = 0; i < 8; ++i) a.x[i / 4][i % 4] *= scales.x[i / 2 % 2];
        team.store_pairs(m.dy, a);
      }
    }
    team.sync();

    if (own_rows) {
      if (convolves) taps.add(team, m.v, memory.conv_grad, kConvStride);
      // Row j, column i of products within the chunk: i >= j.
      Acc d_value;  // = sum_i (R phi(k)_j . R phi(q)_i) u_i + R phi(k)_j U
      if (p.causal) {
        Acc products;
#pragma unroll
        for (int t = 0; t < T::kTiles; ++t)
          mma(products, load_operand<E, false>(m.k + t * kTile, T::kStride),
              load_operand<E, false>(m.q + t * kTile, T::kStride));
        keep_upper(products, team.lane);
        scale(products, 1.f / kHead);
        mma(d_value, to_operand<E>(products), load_operand<E, true>(m.dy + team.own(), T::kStride));
        scale(d_value, factor * kHead);
      }
#pragma unroll
      for (int t = 0; t < T::kTiles; ++t)
        mma_split(d_value, load_operand<E, false>(m.k + t * kTile, T::kStride), state[t], 1.f);
      if (convolves) {
        team.for_each_pair([&](int row, int channel, int j, int e) {
          float2 d = make_float2(0.f, 0.f);
#pragma unroll
          for (int i = 0; i < kMaxTaps; ++i) {
            const float2 w = load2(memory.taps + (kHalo - i) * kHead + channel);
            const float2 c = load2(memory.conv_grad + (row + i) * kConvStride + channel);
            d.x += w.x * c.x, d.y += w.y * c.y;
          }
          const int64_t last = t0 + row - (segment.length - history);
          if (final_grad && last >= 0 && last < history && team.in_head(channel)) {
            const int64_t place = (segment.sequence * history + last) * p.width() + team.head_channel() + channel;
            const float2 c = load2(final_grad + place);
            d.x += c.x, d.y += c.y;
          }
          d_value.x[j][e] += d.x, d_value.x[j][e + 1] += d.y;
        });
      }
      team.store_pairs(p.dv, t0, n, d_value);

      Acc d_key, d_phi;  // = sum_i (v_j . u_i) R phi(q)_i + v_j U^T, and sum_i dZ_i phi(q)_i
      if (p.causal) {
        Acc products;
#pragma unroll
        for (int t = 0; t < T::kTiles; ++t)
          mma(products, load_operand<E, false>(m.v + t * kTile, T::kStride),
              load_operand<E, false>(m.dy + t * kTile, T::kStride));
        keep_upper(products, team.lane);
        scale(products, 1.f / kHead);
        mma(d_key, to_operand<E>(products), load_operand<E, true>(m.q + team.own(), T::kStride));
        scale(d_key, factor * kHead);
        const RowVector row = team.row_vector(memory.scales + 1, 2);
        Acc weights;
#pragma unroll
        for (int i = 0; i < 8; ++i) weights.x[i / 4][i % 4] = row.x[i / 4 * 2 + i % 2];
        keep_upper(weights, team.lane);
        mma(d_phi, to_operand<E>(weights), load_operand<E, true>(memory.fq + team.own(), T::kStride));
        scale(d_phi, factor);
      }
#pragma unroll
      for (int t = 0; t < T::kTiles; ++t)
        mma_split(d_key, load_operand<E, false>(m.v + t * kTile, T::kStride), by_key[t], 1.f);
      rotate_back(team, d_key, t0, n);
      Acc f;
      team.load_pairs(f, memory.fk);
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const int j = i / 4, e = i % 4;
        d_key.x[j][e] = (d_key.x[j][e] + sum.x[2 * j + e % 2] + d_phi.x[j][e]) * phi_grad(f.x[j][e]);
      }
      team.store_pairs(p.dk, t0, n, d_key);
      if (p.causal) {
        {
          const Operand<E> a = load_operand<E, true>(m.dy + team.own(), T::kStride);
#pragma unroll
          for (int t = 0; t < T::kTiles; ++t) {
            Acc part;
            mma(part, a, load_operand<E, true>(m.q + t * kTile, T::kStride));
            add_scaled(state[t], part, factor);
          }
        }
        const Operand<E> q = load_operand<E, true>(m.q + team.own(), T::kStride);
#pragma unroll
        for (int t = 0; t < T::kTiles; ++t) {
          Acc part;
          mma(part, q, load_operand<E, true>(m.dy + t * kTile, T::kStride));
          add_scaled(by_key[t], part, factor);
        }
        add_weighted(sum, team.row_vector(memory.scales + 1, 2),
                     load_operand<E, true>(memory.fq + team.own(), T::kStride), factor);
      }
    }
    if (convolves) {  // the first rows are those behind the next chunk
      __syncwarp();
      for (int i = team.lane; i < kHalo * kTile; i += 32) {
        const int row = i / kTile, column = team.own() + i % kTile;
        memory.conv_grad[(kTile + row) * kConvStride + column] = memory.conv_grad[row * kConvStride + column];
      }
    }
  };
  team.sync();
  pipeline(team, chunks + behind, true, copy, use);

  if (convolves) taps.store(team);
  if (segment.index > 0) return;
  if (p.initial_state_grad) {
    float* const out = team.sequence_state(p.initial_state_grad);
    team.store_state(out, state);
    team.store_sum(out, sum);
  }
  if (p.initial_values_grad && history > 0) {
    __syncwarp();
    for (int i = team.lane; i < history * kTile; i += 32) {
      const int back = i / kTile + 1, column = team.own() + i % kTile;  // rows before the sequence's first
      if (column >= p.head_dim) continue;
      float d = 0.f;
      for (int s = back; s <= history; ++s)
        d += memory.taps[(kHalo - s) * kHead + column] * memory.conv_grad[(kTile + s - back) * kConvStride + column];
      const int64_t channel = team.head_channel() + column, last = history - back - segment.length;
      const int64_t base = segment.sequence * history;
      if (final_grad && last >= 0) d += to_float(final_grad[(base + last) * p.width() + channel]);
      static_cast<E*>(p.initial_values_grad)[(base + history - back) * p.width() + channel] = from_float<E>(d);
    }
  }
}

}  // namespace recgrela::cuda
