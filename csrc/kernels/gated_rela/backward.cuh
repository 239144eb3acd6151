// Backward of gated_rela for a segment, from its inputs.
//
// With a = d_y * SiLU(g), Z the denominator, o the attention's output, u = a / Z and d_Z = -(a . o) / Z:
//   d(R phi(q))_i = u_i S_i^T,      d phi(q)_i += d_Z_i z_i
//   d(R phi(k))_j = v_j U_j^T,      d phi(k)_j += w_j,        d_v_j = R phi(k)_j U_j + the convolution's
//   where U_j = sum_i R phi(q)_i (x) u_i, w_j = sum_i d_Z_i phi(q)_i     over i >= j (causal) or all i
// in chunks as in the forward: products within the chunk and with a state. S and z accumulate forward along the
// segment, U and w in reverse. Therefore a light sweep over keys and values stores S and z before each chunk in global
// memory, and one reverse sweep computes all gradients. To keep 16-bit operands near 1, rows are scaled by n / Z, where
// n is the number of keys, and sums are divided by n.
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
  RelaSegment segment;
  union {
    struct {
      Stage stages[T::kStages];
      E fq[T::kTileSize], fk[T::kTileSize];
      alignas(16) float conv_weights[kHead * (kMaxKernelSize + 1)], d_denominator[kTile];
      RowSums<E, kHead> denominators, dots;
      ConvGradient<kHead> conv;
    };
    KeySumsMemory<E, kHead> keys;  // for the sweep over keys, before the reverse sweep
  };
};

// The transposed state of queries. Each warp holds the state at its own value channels; the operands have its own key
// channels. Heads of one tile in 16 bits transpose registers; other heads exchange tiles through memory.
template <typename E, int kHead>
struct TransposedState {
  static constexpr int kTiles = Team<E, kHead>::kTiles;
  static constexpr bool kInMemory = kTiles > 1 || sizeof(E) == 4;
  E* tiles;
  Operand<E> own;  // unless kInMemory

  // The operands are available after a barrier. `scratch` is a tile of shared memory.
  __device__ TransposedState(const Team<E, kHead>& team, const Acc (&state)[kTiles], E* scratch) : tiles(scratch) {
    if constexpr (kTiles > 1)
      tiles = static_cast<E*>(team.segment.chunk_states) + team.p.max_chunks * (kTiles * kTiles * kPackedTile);
    if constexpr (kTiles == 1) __syncwarp();  // other lanes may still read the scratch
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

// Sweeps over the segment in reverse and stores all gradients.
template <typename E, int kHead>
__device__ void sweep_reverse(const Team<E, kHead>& team, BackwardMemory<E, kHead>& memory) {
  using T = Team<E, kHead>;
  const RelaPlan& p = team.p;
  const RelaSegment& segment = team.segment;
  const bool gates = p.g.data, convolves = p.kernel_size > 0;
  const int history = p.kernel_size - 1;

  const float* state_after = nullptr;
  if (!p.causal || segment.count > 1)
    state_after = team.state(p.query_states);
  else if (p.d_final_kv_state)
    state_after = team.sequence_state(p.d_final_kv_state);
  Acc state[T::kTiles];
  RowVector sum;
  team.load_state(state_after, state);
  team.load_sum(state_after, sum);
  ConvWeightGradients d_conv_weights = zero_conv_weight_gradients();
  team.load_conv_weights(memory.conv_weights);
  move_conv_gradient(team, memory.conv, true);

  // The gradient of the convolution at the last rows of the segment needs the kMaxHistory rows after them, which are
  // processed as a chunk of their own.
  const int chunks_after = history > 0 && segment.end < segment.sequence_end;
  const int chunks = team.chunks() + chunks_after;
  Sources<E, kHead> from;
  from.find(team, chunks - 1);
  auto rows_of = [&](int chunk) {
    const int64_t left = segment.sequence_end - team.first_row(chunk);
    return left < kTile ? static_cast<int>(left) : kTile;
  };
  auto copy = [&](int i, int stage) {
    auto& m = memory.stages[stage];
    const int n = rows_of(chunks - 1 - i);
    team.copy_chunk(m.q, from.q, p.q, n);
    team.copy_chunk(m.k, from.k, p.k, n);
    team.copy_values(m.v, from.v, i == chunks - 1 && segment.is_first(), n);
    if (gates) team.copy_chunk(m.g, from.g, p.g, n);
    team.copy_chunk(m.d_y, from.d_y, p.d_y, n);
    from.move(team, -1);
  };
  const int last = chunks - 1 - chunks_after;
  const float* angle = find_angle(team, last);
  Target<E, kHead> d_q(team, p.d_q, last), d_k(team, p.d_k, last), d_v(team, p.d_v, last);
  Target<E, kHead> d_g(team, p.d_g, last);
  constexpr bool kOne = T::kTiles == 1;
  auto use = [&](int i, int stage) {
    auto& m = memory.stages[stage];
    const int chunk = chunks - 1 - i;
    const bool own_rows = chunk < team.chunks();
    const int n = rows_of(chunk);
    const float num_keys = team.num_keys(chunk), factor = fast_reciprocal(num_keys);
    const ChunkState<E, kHead> key_state(team, chunk);
    Angles angles;
    Features<E, kHead> queries, keys;
    Acc o, running;
    RowPair inverse;
    Products for_values;
    auto add_value_products = [&](int t, const Operand<E>& query) {
      const Operand<E> key = keys.operand(t);
      if (p.causal) mma<kOne>(for_values.rows, key, query);
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
          team, n, num_keys, denominator, queries, keys, m.v,
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
    Acc a, d_gate;  // gradients of the gated sum and of the gate's input; the latter is multiplied by the sum later
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
    if (convolves) silu = convolve_back(team, a, m.v, memory.conv_weights, own_rows, memory.conv, d_conv_weights);

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
        if (convolves) add_conv_gradient(team, d_value, memory.conv_weights, memory.conv);
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
        if (p.causal) mma<kOne>(for_queries.rows, u, v), mma<kOne>(for_keys.rows, v, u);
        limit_overlap<E>();
        mma<kOne>(for_queries.state, u, load_packed<E, true>(key_state.tile(t, team.warp)));
        limit_overlap<E>();
        mma<kOne>(for_keys.state, v, transposed.operand(team, t));
      }
      // Recomputing and reloading is cheaper than holding the registers until here.
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

  if (convolves) store_conv_weight_gradients(team, d_conv_weights);
  if (!segment.is_first()) return;
  if (p.d_initial_kv_state) {
    float* const out = team.sequence_state(p.d_initial_kv_state);
    team.store_state(out, state);
    team.store_sum(out, sum);
  }
  if (p.d_initial_history && history > 0) {
    __syncwarp();
    store_initial_history_gradient(team, memory.conv_weights, memory.conv);
  }
}

template <typename E, int kHead>
__global__ void __launch_bounds__(Team<E, kHead>::kThreads, Team<E, kHead>::kBackwardBlocks)
    rela_backward_kernel(const RelaPlan p) {
  using T = Team<E, kHead>;
  auto& memory = team_memory<BackwardMemory<E, kHead>, T>();
  T team(p, memory.segment);
  if (team.find_segment(memory.segment)) {
    store_key_states(team, memory.keys);
    team.sync();
    sweep_reverse(team, memory);
  } else if (p.kernel_size > 0 && p.first_unit + team.number() < p.num_units()) {
    // The slot is empty: its partial sums are zero.
    float* const out = p.conv_partials + (team.segment.slot * p.width() + team.head_channel()) * (kMaxKernelSize + 1);
    for (int i = team.thread; i < p.head_dim * (kMaxKernelSize + 1); i += 32 * T::kWarps) out[i] = 0.f;
  }
}

}  // namespace recgrela::cuda
