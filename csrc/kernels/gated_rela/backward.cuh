// The backward of gated_rela for a segment, from its raw inputs.
//
// With a = d_y * SiLU(g), Z the denominator, o the attention's output and u = a / Z, dZ = -(a . o) / Z:
//   d(R phi(q))_i = u_i S_i^T,      d phi(q)_i += dZ_i z_i
//   d(R phi(k))_j = v_j U_j^T,      d phi(k)_j += w_j,        dv_j = R phi(k)_j U_j + the convolution's
//   where U_j = sum_i R phi(q)_i (x) u_i, w_j = sum_i dZ_i phi(q)_i     over i >= j (causal) or all i
// by chunks as in the forward: products within the chunk and with a state. S and z run forward along the segment, U and
// w back. So a light sweep over keys and values leaves S and z before each chunk in global memory, and one in reverse
// does all else. As in the forward, what enters a product in 16 bits is kept near 1: rows are scaled by n / Z, n the
// chunk's count, and sums divided by n.
#pragma once

#include "kernels/gated_rela/conv_gradient.cuh"
#include "kernels/gated_rela/gradients.cuh"
#include "kernels/gated_rela/query_sums.cuh"

namespace recgrela::cuda {

template <typename E, int kHead>
struct BackwardMemory {
  using T = Team<E, kHead>;
  struct alignas(16) Stage {
    E q[T::kTileSize], k[T::kTileSize], history[T::kHistorySize], v[T::kTileSize], g[T::kTileSize], d_y[T::kTileSize];
  };
  Segment segment;
  union {
    struct {
      Stage stages[T::kStages];
      E fq[T::kTileSize], fk[T::kTileSize];
      alignas(16) float taps[kHead * (kMaxKernelSize + 1)], d_denominator[kTile];
      RowSums<E, kHead> denominators, dots;
      ConvGradient<kHead> conv;
    };
    KeySumsMemory<E, kHead> keys;  // of the sweep before
  };
};

// The transposes of the queries' state as operands, of own key channels, which the state's owners hold by value
// channels. A head of one tile in 16 bits turns its own; others go through memory.
template <typename E, int kHead>
struct TransposedState {
  static constexpr int kTiles = Team<E, kHead>::kTiles;
  static constexpr bool kInMemory = kTiles > 1 || sizeof(E) == 4;
  E* tiles;
  Operand<E> own;  // not in memory

  // After a barrier behind this the operands are there. `free`: room for a tile in shared memory.
  __device__ TransposedState(const Team<E, kHead>& team, const Acc (&state)[kTiles], E* free) : tiles(free) {
    if constexpr (kTiles > 1)
      tiles = static_cast<E*>(team.segment.chunk_states) + team.p.room_chunks * (kTiles * kTiles * kPackedTile);
    if constexpr (kTiles == 1) __syncwarp();  // for those that read what was there
    if constexpr (kInMemory) {
#pragma unroll
      for (int t = 0; t < kTiles; ++t) store_packed(tiles + (team.warp * kTiles + t) * kPackedTile, state[t], 1.f);
    } else {
      own = transpose(to_operand<E>(state[0]));
    }
  }
  __device__ Operand<E> operand(const Team<E, kHead>& team, int t) const {
    if constexpr (kInMemory)
      return load_packed<E, true>(tiles + (t * kTiles + team.warp) * kPackedTile);
    else
      return own;
  }
};

// The sweep in reverse.
template <typename E, int kHead>
__device__ void sweep_back(const Team<E, kHead>& team, BackwardMemory<E, kHead>& memory) {
  using T = Team<E, kHead>;
  const RelaPlan& p = team.p;
  const Segment& segment = team.segment;
  const bool gates = p.g.data, convolves = p.kernel_size > 0;
  const int history = p.kernel_size - 1;

  const float* behind_state = nullptr;
  if (!p.causal || segment.count > 1)
    behind_state = team.state(p.query_state);
  else if (p.d_final_kv_state)
    behind_state = team.sequence_state(p.d_final_kv_state);
  Acc state[T::kTiles];
  RowVector sum;
  team.load_state(behind_state, state);
  team.load_sum(behind_state, sum);
  TapGradients taps = no_tap_gradients();
  team.load_taps(memory.taps);
  move_conv_gradient(team, memory.conv, true);

  // The convolution's gradient at the segment's last rows needs the kMaxHistory rows behind them: a chunk of their own.
  const int behind = history > 0 && segment.end < segment.length;
  const int chunks = team.chunks() + behind;
  Sources<E, kHead> from;
  from.find(team, chunks - 1);
  auto rows_of = [&](int chunk) {
    const int64_t left = segment.length - team.first_row(chunk);
    return left < kTile ? static_cast<int>(left) : kTile;
  };
  auto copy = [&](int i, int stage) {
    auto& m = memory.stages[stage];
    const int n = rows_of(chunks - 1 - i);
    team.copy_chunk(m.q, from.q, p.q, n);
    team.copy_chunk(m.k, from.k, p.k, n);
    team.copy_values(m.v, from.v, i == chunks - 1 && segment.index == 0, n);
    if (gates) team.copy_chunk(m.g, from.g, p.g, n);
    team.copy_chunk(m.d_y, from.d_y, p.d_y, n);
    from.move(team, -1);
  };
  const int last = chunks - 1 - behind;
  const float* angle = find_angle(team, last);
  Target<E, kHead> d_q(team, p.d_q, last), d_k(team, p.d_k, last), d_v(team, p.d_v, last);
  Target<E, kHead> d_g(team, p.d_g, last);
  constexpr bool kOne = T::kTiles == 1;
  auto use = [&](int i, int stage) {
    auto& m = memory.stages[stage];
    const int chunk = chunks - 1 - i;  // of the segment
    const bool own_rows = chunk < team.chunks();
    const int n = rows_of(chunk);
    const float count = team.chunk_count(chunk), factor = fast_reciprocal(count);
    const ChunkState<E, kHead> key_state(team, chunk);
    Angles angles;
    Features<E, kHead> queries, keys;
    Acc o, running;
    RowPair inverse;
    Products for_values;
    auto add_value_products = [&](int t, const Operand<E>& query) {
      const Operand<E> key = keys.operand(t);
      if (p.causal) mma<kOne>(for_values.tokens, key, query);
      mma<kOne>(for_values.state, key, to_operand<E>(state[t]));
    };
    if (own_rows) {
      angles = load_angles(team, angle, n);
      const Acc plain = make_features(team, queries, m.q, memory.fq, angles, n);
      make_features(team, keys, m.k, memory.fk, angles, n);
      __syncwarp();
      running = with_state(running_keys(team, keys), team.row_vector(key_state.sums + team.own()), factor);
      RowPair denominator = memory.denominators.put(team, plain, running);
      team.sync();
      denominator = memory.denominators.get(team, denominator);
      o = attend<false>(
          team, n, count, denominator, queries, keys, m.v,
          [&](int t) { return load_packed<E, false>(key_state.tile(team.warp, t)); }, inverse,
          [&](int, const Operand<E>& query) {
            if constexpr (kOne) add_value_products(0, query);
          });
      if constexpr (!kOne) {
#pragma unroll
        for (int t = 0; t < T::kTiles; ++t) {
          limit_overlap<E>();
          add_value_products(t, queries.operand(t));
        }
      }
    }
    Acc a, d_gate;  // d_y through the gate; the gradient of the gate's input, but for the factor of the output
    team.load_pairs(a, m.d_y);
    if (gates) {
      Acc gate;
      team.load_pairs(gate, m.g);
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const float y = a.x[i / 4][i % 4], x = gate.x[i / 4][i % 4], s = sigmoid(x);
        a.x[i / 4][i % 4] = y * (x * s);
        d_gate.x[i / 4][i % 4] = y * silu_grad(s, x * s);
      }
    }
    Acc silu;
    if (convolves) silu = convolve_back(team, a, m.v, memory.taps, own_rows, memory.conv, taps);

    if (own_rows) {
      if (gates) {
#pragma unroll
        for (int i = 0; i < 8; ++i) d_gate.x[i / 4][i % 4] *= o.x[i / 4][i % 4] + silu.x[i / 4][i % 4];
        d_g.store(team, n, d_gate, -1);
      }
      scale_gradient(team, a, o, inverse, m.d_y, memory.d_denominator, memory.dots);
      const TransposedState<E, kHead> transposed(team, state, m.g);
      team.sync();

      {
        const Operand<E> gradients = load_operand<E, true>(m.d_y + team.own(), T::kStride);
        Acc d_value = value_gradient(team, for_values, gradients, factor);
        if (convolves) add_conv_gradient(team, d_value, memory.taps, memory.conv);
        if (convolves && p.d_final_history) add_final_gradient(team, d_value, team.first_row(chunk));
        d_v.store(team, n, d_value, -1);
        if (p.causal) add_queries<E, kHead>(queries, gradients, factor, state);
      }
      limit_overlap<E>();

      Products for_queries, for_keys;
#pragma unroll 1
      for (int t = 0; t < T::kTiles; ++t) {
        const Operand<E> u = load_operand<E, false>(m.d_y + t * kTile, T::kStride);
        const Operand<E> v = load_operand<E, false>(m.v + t * kTile, T::kStride);
        if (p.causal) mma<kOne>(for_queries.tokens, u, v), mma<kOne>(for_keys.tokens, v, u);
        limit_overlap<E>();
        mma<kOne>(for_queries.state, u, load_packed<E, true>(key_state.tile(t, team.warp)));
        limit_overlap<E>();
        mma<kOne>(for_keys.state, v, transposed.operand(team, t));
      }
      // Made and loaded again, which is cheaper than the registers until here.
      running = with_state(running_keys(team, keys), team.row_vector(key_state.sums + team.own()), factor);
      if constexpr (sizeof(E) == 4) angles = load_angles(team, angle, n);
      d_q.store(team, n,
                query_gradient(team, for_queries, running, queries, keys, memory.d_denominator, angles, factor), -1);
      limit_overlap<E>();
      d_k.store(team, n, key_gradient(team, for_keys, sum, queries, keys, memory.d_denominator, angles, factor), -1);
      if (angle) angle -= kTile * static_cast<int>(p.width());
    }
    if (convolves) {
      __syncwarp();
      move_conv_gradient(team, memory.conv, false);
    }
  };
  team.sync();
  pipeline(team, chunks, copy, use);

  if (convolves) store_tap_gradients(team, taps);
  if (segment.index > 0) return;
  if (p.d_initial_kv_state) {
    float* const out = team.sequence_state(p.d_initial_kv_state);
    team.store_state(out, state);
    team.store_sum(out, sum);
  }
  if (p.d_initial_history && history > 0) {
    __syncwarp();
    store_initial_history_gradient(team, memory.taps, memory.conv);
  }
}

template <typename E, int kHead>
__global__ void __launch_bounds__(Team<E, kHead>::kThreads, Team<E, kHead>::kBackwardBlocks)
    backward_kernel(const RelaPlan p) {
  using T = Team<E, kHead>;
  auto& memory = team_memory<BackwardMemory<E, kHead>, T>();
  T team(p, memory.segment);
  if (team.find_work(memory.segment)) {
    store_key_states(team, memory.keys);
    team.sync();
    sweep_back(team, memory);
  } else if (p.kernel_size > 0 && p.first_work + team.number() < p.works()) {
    // No segment: its place among the partial sums is zero.
    float* const out = p.conv_partial + (team.segment.slot * p.width() + team.head_channel()) * (kMaxKernelSize + 1);
    for (int i = team.thread; i < p.head_dim * (kMaxKernelSize + 1); i += 32 * T::kWarps) out[i] = 0.f;
  }
}

}  // namespace recgrela::cuda
