// Backward of gated_rela for a segment of heads of 64 and 128 channels, and its sums over queries.
// narrow/reverse.cuh has the mathematics.
//
// The chunk's rotated queries and keys, its values and a = d_y SiLU(g) are operands in shared memory, each warp's
// channels written by the warp. Dividing by the denominator Z commutes with products over channels: scores of the
// chunk P = (q k^T) / Z and W = (a v^T) / Z, and a S^T / Z, are scaled by rows afterwards, so that only sums over
// channels cross warps. Barriers of a chunk:
//   1. operands, the state of queries as an operand, and parts of Z are in shared memory
//   2. P and W are, which are divided among the warps
//   3. a . o is, which the gradients of Z need
//   4. all operands have been read
#pragma once

#include "kernels/gated_rela/wide/reverse_products.cuh"

namespace recgrela::cuda {

template <typename E, int kHead, bool kGradients>
struct ReverseSweep : ReverseProducts<E, kHead, kGradients> {
  using Base = ReverseProducts<E, kHead, kGradients>;
  using Base::chunk;
  using Base::compute_scores;
  using Base::factor;
  using Base::inverse;
  using Base::inverses;
  using Base::kRows;
  using Base::kRowTiles;
  using Base::kTiles;
  using Base::limit;
  using Base::m;
  using Base::multiply;
  using Base::next_key_sums;
  using Base::num_keys;
  using Base::p;
  using Base::team;
  using Base::weighted_sums;
  using typename Base::Memory;
  using typename Base::Rows;
  using typename Base::T;

  Acc state[kTiles];  // of queries, by own value channels
  LaneChannels sum;   // of d_Z phi(q), by own key channels
  WideConvGradient<E, kHead> conv;

  __device__ ReverseSweep(const T& team, Memory& m)
      : Base(team, m), conv(team, m.conv_weights, m.shifted[team.warp], m.conv_sums) {}

  __device__ bool needs_keys() const { return kGradients || p.causal; }
  __device__ E* stored_exchange() const {
    return static_cast<E*>(team.segment.chunk_states) + p.max_chunks * (kHead * kHead);
  }

  // Rows of a chunk that are loaded ahead.
  struct Inputs {
    LaneRows<E> q[kRowTiles], k[kRowTiles], v[kRowTiles], g[kRowTiles], d_y[kRowTiles];
  };
  __device__ typename T::Chunk chunk_at(int i) const { return {i * kRows, min(kRows, team.rows() - i * kRows)}; }
  __device__ void load_inputs(Inputs& in, const typename T::Chunk& from) const {
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
      in.q[r] = team.template load<Matrices::kQ>(from, r);
      if (needs_keys()) in.k[r] = team.template load<Matrices::kK>(from, r);
      if (needs_keys()) in.v[r] = team.template load<Matrices::kV>(from, r);
      if constexpr (kGradients) load_gate(in, from, r);
    }
  }
  __device__ void load_gate(Inputs& in, const typename T::Chunk& from, int r) const {
    in.d_y[r] = team.template load<Matrices::kDY>(from, r);
    if (p.g.data) in.g[r] = team.template load<Matrices::kG>(from, r);
  }

  // The gradient of the attention before the gate, and of the gate over the gated sum.
  __device__ void gate_back(const Inputs& in, int r, Acc& a, Acc& d_gate) const {
    a = unpack_rows(in.d_y[r]);
    keep_rows(a, chunk.rest(r));
    if (!p.g.data) return;
    const Acc g = unpack_rows(in.g[r]);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      float& d = a.x[i / 4][i % 4];
      const float x = g.x[i / 4][i % 4], s = sigmoid(x), y = x * s;
      d_gate.x[i / 4][i % 4] = d * silu_grad(s, y);
      d *= y;
    }
  }

  // Prepares the gradients of c at the rows after the segment.
  __device__ void prepare_conv() {
    const int rows = team.rows();
    const int64_t left = team.segment.sequence_end - team.segment.end;
    chunk = {rows, left < kTile ? static_cast<int>(left) : kTile};
    Inputs in;
    load_gate(in, chunk, 0);
    in.v[0] = team.template load<Matrices::kV>(chunk, 0);
    Acc a, d_gate, none;
    gate_back(in, 0, a, d_gate);
    conv.template step<false>(unpack_rows(in.v[0]), unpack_rows(conv.load_history(rows)), a, none);
  }

  __device__ void process(int i, Inputs& in) {
    chunk = chunk_at(i);
    factor = team.factor(i), num_keys = team.num_keys(i);
    const StoredState<E, kHead> keys(team, i);
    LaneChannels z = load_channels(keys.sums + team.channel());
    LaneAngles all_angles[kRowTiles];
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) all_angles[r] = team.load_angles(chunk, r);
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
      const LaneAngles& angles = all_angles[r];
      const Acc q = features(in.q[r], chunk.rest(r));
      m.phi_q[r][threadIdx.x] = KeptTile<E>(q);
      store_tile<E>(m.q.tile(team.warp, r), rotate<false>(q, angles), team.at);
      Acc key_sums = equal_rows(z);
      if (needs_keys()) {
        const Acc k = features(in.k[r], chunk.rest(r));
        const KeptTile<E> phi_k(k);
        m.phi_k[r][threadIdx.x] = phi_k;
        store_tile<E>(m.k.tile(team.warp, r), rotate<false>(k, angles), team.at);
        if (p.causal) key_sums = next_key_sums(z, phi_k);
        const Split<E> v = to_split(in.v[r]);
#pragma unroll
        for (int part = 0; part < kParts<E>; ++part)
          store_matrices_at(m.v.tile(team.warp, r) + part * kPackedTile, team.at.along, team.at.pair, v.part[part].r);
      }
      team.put_row_sums(m.denominators, r, q, key_sums);
      if constexpr (kGradients) {
        Acc a, d_gate;
        gate_back(in, r, a, d_gate);
        store_tile<E>(m.a.tile(team.warp, r), a, team.at);
      }
    }
    if constexpr (kGradients) {
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
        if constexpr (Memory::kExchange)
          store_tile<E>(m.exchange + (team.warp * kTiles + t) * kPackedTile, state[t], team.at);
        else
          store_tile_of_state<E>(stored_exchange() + (team.warp * kTiles + t) * kPackedTile, state[t], 1.f);
      }
    }
    __syncthreads();

#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) inverses[r] = inverse(r);
    if (p.causal) compute_scores();
    Rows o;
    multiply(o, m.q, [&](int t) { return load_tile_of_state<E, false>(keys.tile(team.warp, t)); });
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) scale_rows(o.x[r], inverses[r]);
    if (p.causal) {
      __syncthreads();
      this->template add_scores<false>(o, 0, m.v);
    }
    finish_values(o);
    __syncthreads();
    finish_keys(keys);
    __syncthreads();
  }

  // Gates and convolution, the gradient of values, and the state of queries.
  __device__ void finish_values(const Rows& o) {
    Rows d_v;
    const bool convolves = kGradients && p.kernel_size > 0;
    Inputs in;
    LaneRows<E> history;
    constexpr bool kAhead = sizeof(E) == 2 && kTiles < 8;  // all at once: there are registers
    auto load = [&](int r) {
      load_gate(in, chunk, r);
      if (!convolves) return;
      in.v[r] = team.template load<Matrices::kV>(chunk, r);
      if (r == 0) history = conv.load_history(chunk.first);
    };
    if constexpr (kAhead) {
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r) load(r);
    }
    Split<E> u[kRowTiles];
#pragma unroll
    for (int r = kRowTiles - 1; r >= 0; --r) {
      if constexpr (!kAhead) {
        load(r);
        if (convolves && r > 0) in.v[r - 1] = team.template load<Matrices::kV>(chunk, r - 1);
      }
      Acc a, d_gate;
      gate_back(in, r, a, d_gate);
      team.put_row_sums(m.dots, r, a, o.x[r]);
      if constexpr (kGradients) {
        if (chunk.rest(r) > 0) {
          Acc sum = o.x[r];
          if (convolves) {
            const Acc before = unpack_rows(r > 0 ? in.v[r > 0 ? r - 1 : 0] : history);
            add_scaled(sum, conv.template step<true>(unpack_rows(in.v[r]), before, a, d_v.x[r]), 1.f);
            if (p.d_final_history) conv.add_final_gradient(d_v.x[r], chunk.first + r * kTile);
          }
          if (p.g.data) {
#pragma unroll
            for (int i = 0; i < 8; ++i) d_gate.x[i / 4][i % 4] *= sum.x[i / 4][i % 4];
            team.template store<Matrices::kDG>(chunk, r, d_gate);
          }
        }
      }
      scale_rows(a, inverses[r]);
      if constexpr (kScaled<E>) scale(a, kGradientRange<E, kHead>);
      u[r] = transpose(to_split<E>(a));
    }
    if constexpr (kGradients) {
      multiply(d_v, m.k, [&](int t) {
        if constexpr (Memory::kExchange)
          return load_right<E, false>(m.exchange + (team.warp * kTiles + t) * kPackedTile, team.at);
        else
          return as_right(to_split<E>(state[t]));
      });
      if (p.causal) this->template add_scores<true>(d_v, 0, m.a);
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r) team.template store<Matrices::kDV>(chunk, r, d_v.x[r]);
      if (!p.causal) return;
    }
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      limit(t);
      Acc part;
      Acc& to = kScaled<E> ? part : state[t];
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r) add_product(to, u[r], load_right<E, true>(m.q.tile(t, r), team.at));
      if constexpr (kScaled<E>) add_scaled(state[t], part, factor / kGradientRange<E, kHead>);
    }
  }

  // Gradients of queries and keys, and the sum of d_Z phi(q).
  __device__ void finish_keys(const StoredState<E, kHead>& keys) {
    RowPair d_z[kRowTiles];
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
      d_z[r] = team.get_row_sums(m.dots, r);
#pragma unroll
      for (int h = 0; h < 2; ++h) d_z[r].x[h] *= -inverses[r].x[h];
    }
    if constexpr (kGradients) {
      Rows d_q;
      multiply(d_q, m.a, [&](int t) { return load_tile_of_state<E, true>(keys.tile(t, team.warp)); });
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r) scale_rows(d_q.x[r], inverses[r]);
      if (p.causal) this->template add_scores<false>(d_q, 1, m.k);
      LaneChannels z = load_channels(keys.sums + team.channel());
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r) {
        // Computing these sums again is cheaper than holding the registers until here.
        const Acc key_sums = p.causal ? next_key_sums(z, m.phi_k[r][threadIdx.x]) : equal_rows(z);
        Acc d = rotate<true>(d_q.x[r], team.load_angles(chunk, r));
        const Acc f = m.phi_q[r][threadIdx.x].acc();
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          float& x = d.x[i / 4][i % 4];
          x += d_z[r].x[i / 2 % 2] * key_sums.x[i / 4][i % 4];
          x *= phi_grad(f.x[i / 4][i % 4]);
        }
        team.template store<Matrices::kDQ>(chunk, r, d);
      }
    }
    Rows d_k;
    if constexpr (kGradients) {
      multiply(d_k, m.v, [&](int t) {
        const int tile = (t * kTiles + team.warp) * kPackedTile;
        if constexpr (Memory::kExchange)
          return load_right<E, true>(m.exchange + tile, team.at);
        else
          return load_tile_of_state<E, true>(stored_exchange() + tile);
      });
      if (p.causal) this->template add_scores<true>(d_k, 1, m.q);
    }
#pragma unroll
    for (int r = kRowTiles - 1; r >= 0; --r) {
      Acc d_phi = equal_rows(sum);
      if (p.causal || !kGradients) {
        const Acc weighted = weighted_sums(d_z[r], m.phi_q[r][threadIdx.x].split());
        add_scaled(d_phi, weighted, factor);
        add_scaled(sum, channels_of_row<0>(weighted), factor);
      }
      if constexpr (kGradients) {
        Acc d = rotate<true>(d_k.x[r], team.load_angles(chunk, r));
        const Acc f = m.phi_k[r][threadIdx.x].acc();
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          float& x = d.x[i / 4][i % 4];
          x += d_phi.x[i / 4][i % 4];
          x *= phi_grad(f.x[i / 4][i % 4]);
        }
        team.template store<Matrices::kDK>(chunk, r, d);
      }
    }
  }

  __device__ void run() {
    const RelaSegment& segment = team.segment;
    const float* after = nullptr;
    if constexpr (kGradients) {
      if (!p.causal || segment.count > 1)
        after = team.state(p.query_states);
      else if (p.d_final_kv_state)
        after = team.sequence_state(p.d_final_kv_state);
    }
    team.load_state(after, state, sum);
    const bool convolves = kGradients && p.kernel_size > 0;
    if (convolves) {
      conv.load_weights(team, m.conv_weights);
      __syncthreads();
      if (p.kernel_size > 1 && segment.end < segment.sequence_end) prepare_conv();
    }
    Inputs in;
    for (int i = team.chunks() - 1; i >= 0; --i) {
      load_inputs(in, chunk_at(i));
      process(i, in);
    }
    if constexpr (kGradients) {
      if (convolves) conv.store_weights();
      if (!segment.is_first()) return;
      if (p.d_initial_kv_state) team.store_state(team.sequence_state(p.d_initial_kv_state), state, sum);
      if (p.d_initial_history && p.kernel_size > 1) conv.store_initial_history();
    } else {
      team.store_state(team.state(p.query_states), state, sum);
    }
  }
};

}  // namespace recgrela::cuda
