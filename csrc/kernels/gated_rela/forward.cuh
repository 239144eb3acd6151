// Forward of gated_rela for a segment, given the state before it (causal) or of its whole sequence (bidirectional).
//
// Each chunk of 16 rows computes, with n the number of keys of its last row:
//   numerator / n   = (R phi(q) (R phi(k))^T, j <= i) v / n + R phi(q) (S / n)
//   denominator / n = (phi(q) phi(k)^T, j <= i) 1 / n + phi(q) (z / n)
// The first terms exist only in the causal form, which then adds the chunk to S and z. All rows of a chunk take part in
// its products: a value that is not finite also reaches the rows before it in its chunk.
#pragma once

#include "kernels/gated_rela/chunk.cuh"

namespace recgrela::cuda {

template <typename E, int kHead>
struct ForwardMemory {
  using T = Team<E, kHead>;
  struct alignas(16) Stage {
    E q[T::kTileSize], k[T::kTileSize], history[T::kHistorySize], v[T::kTileSize], g[T::kTileSize];
  };
  RelaSegment segment;
  Stage stages[T::kStages];
  E fk[T::kTileSize];
  alignas(16) float conv_weights[kHead * (kMaxKernelSize + 1)];
  RowSums<E, kHead> denominators;
};

// bias + sum_k weight_k v[row - 3 + k], by own channels.
template <typename E, int kHead>
__device__ Acc convolve(const Team<E, kHead>& team, const E* v, const float* conv_weights) {
  using T = Team<E, kHead>;
  Acc c;
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    const int column = team.own() + tile_col(team.lane, j, 0);
    float2 w[kMaxKernelSize + 1];
#pragma unroll
    for (int i = 0; i <= kMaxKernelSize; ++i) w[i] = load2(conv_weights + i * kHead + column);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const E* const rows = v + (tile_row(team.lane, 2 * h) - kMaxHistory) * T::kStride + column;
      c.x[j][2 * h] = w[kMaxKernelSize].x, c.x[j][2 * h + 1] = w[kMaxKernelSize].y;
#pragma unroll
      for (int i = 0; i < kMaxKernelSize; ++i) {
        const float2 x = load2(rows + i * T::kStride);
        c.x[j][2 * h] += w[i].x * x.x, c.x[j][2 * h + 1] += w[i].y * x.y;
      }
    }
  }
  return c;
}

// Stores the last K - 1 values of a sequence, including its initial history.
template <typename E, int kHead>
__device__ void store_final_history(const Team<E, kHead>& team) {
  using T = Team<E, kHead>;
  const RelaPlan& p = team.p;
  const RelaSegment& segment = team.segment;
  const int rows = p.kernel_size - 1;
  const int64_t width = p.width();
  const E* const initial = static_cast<const E*>(p.initial_history);
  for (int i = team.thread; i < rows * p.head_dim; i += 32 * T::kWarps) {
    const int row = i / p.head_dim;
    const int64_t channel = team.head_channel() + i % p.head_dim, from = segment.sequence_end - rows + row;
    E x = from_float<E>(0.f);
    if (from >= segment.sequence_begin)
      x = static_cast<const E*>(p.v.data)[from * p.v.stride + channel];
    else if (initial)
      x = initial[(segment.sequence * rows + rows + from - segment.sequence_begin) * width + channel];
    static_cast<E*>(p.final_history)[(segment.sequence * rows + row) * width + channel] = x;
  }
}

template <typename E, int kHead>
__global__ void __launch_bounds__(Team<E, kHead>::kThreads, Team<E, kHead>::kForwardBlocks)
    rela_forward_kernel(const RelaPlan p) {
  using T = Team<E, kHead>;
  auto& memory = team_memory<ForwardMemory<E, kHead>, T>();
  T team(p, memory.segment);
  check_sequences(p.sequences, p.initial_position, p.rotary ? p.rotary_positions : 0);
  if (!team.find_segment(memory.segment)) return;
  const RelaSegment& segment = team.segment;
  team.load_conv_weights(memory.conv_weights);

  Acc state[T::kTiles];
  RowVector sum;
  team.load_state(state_before(team), state);
  team.load_sum(state_before(team), sum);

  Sources<E, kHead> from;
  from.find(team, 0);
  Target<E, kHead> y(team, p.y, 0);
  const float* angle = find_angle(team, 0);
  const int rows = team.rows();
  auto copy = [&](int i, int stage) {
    auto& m = memory.stages[stage];
    const int n = rows - i * kTile;
    team.copy_chunk(m.q, from.q, p.q, n);
    if (p.causal) team.copy_chunk(m.k, from.k, p.k, n);
    team.copy_values(m.v, from.v, i == 0 && segment.is_first(), n);
    if (p.g.data) team.copy_chunk(m.g, from.g, p.g, n);
    from.move(team, 1);
  };
  auto use = [&](int i, int stage) {
    auto& m = memory.stages[stage];
    const int n = rows - i * kTile;
    const Angles angles = load_angles(team, angle, n);
    Features<E, kHead, kHead == kTile> queries, keys;
    const Acc plain = make_features(team, queries, m.q, static_cast<E*>(nullptr), angles, n);
    if (p.causal) make_features(team, keys, m.k, memory.fk, angles, n);
    const float num_keys = team.num_keys(i), factor = fast_reciprocal(num_keys);
    __syncwarp();
    const Acc running = running_keys(team, keys);
    RowPair denominator = memory.denominators.put(team, plain, with_state(running, scaled(sum, factor), factor));
    team.sync();
    denominator = memory.denominators.get(team, denominator);

    RowPair inverse;
    Acc out = attend<true>(
        team, n, num_keys, denominator, queries, keys, m.v, [&](int t) { return to_operand<E>(state[t], factor); },
        inverse, [](int, const Operand<E>&) {});
    if (p.kernel_size > 0) {
      const Acc c = convolve(team, m.v, memory.conv_weights);
#pragma unroll
      for (int i = 0; i < 8; ++i) out.x[i / 4][i % 4] += c.x[i / 4][i % 4] * sigmoid(c.x[i / 4][i % 4]);
    }
    if (p.g.data) {
      Acc gate;
      team.load_pairs(gate, m.g);
      out = gated(out, gate);
    }
    y.store(team, n, out, 1);
    if (p.causal) {
      add_keys(team, keys, m.v, state);
      add_scaled(sum, row_of<kTile - 1>(running), 1.f);
    }
    if (angle) angle += kTile * static_cast<int>(p.width());
  };
  team.sync();
  pipeline(team, team.chunks(), copy, use);

  if (p.final_kv_state && segment.is_last()) {
    float* const out = team.sequence_state(p.final_kv_state);
    team.store_state(out, state);
    team.store_sum(out, sum);
    if (!p.causal) return;
    if (p.kernel_size > 1) store_final_history(team);
    if (team.head == 0 && team.thread == 0) p.final_position[segment.sequence] = segment.position + rows;
  }
}

}  // namespace recgrela::cuda
