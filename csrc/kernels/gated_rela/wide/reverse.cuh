// Backward of gated_rela for a segment of heads of 64 and 128 channels, and its sums over queries.
// narrow/reverse.cuh has the mathematics.
//
// The chunk's rotated queries and keys, its values and a = d_y SiLU(g) are operands in shared memory, each warp's rows
// and channels written by the warp. Dividing by the denominator Z commutes with products over channels: o and scores of
// the chunk P = (q k^T) / Z and W = (a v^T) / Z are scaled by rows afterwards, so that only sums over channels cross
// warps. P of a row with one key is exactly 1 when it is rounded to 16 bits, so that terms of its gradients cancel.
// Barriers of a chunk:
//   1. operands, the state of queries as an operand, parts of Z, and gradients of the convolution are in shared memory
//   2. (causal) scores, which the warps share out, are in shared memory
//   3. u = a / Z has replaced a; a . o, which the gradients of Z need, is there
//   4. (two row tiles, and sums over queries accumulate) sums of d_Z phi(q) over each row tile are there
//   5. all operands have been read
#pragma once

#include "kernels/gated_rela/wide/reverse_products.cuh"

namespace recgrela::cuda {

template <typename E, int kHead, bool kGradients>
struct ReverseSweep : ReverseProducts<E, kHead, kGradients> {
  using Base = ReverseProducts<E, kHead, kGradients>;
  using Base::begin_part;
  using Base::chunk;
  using Base::compute_scores;
  using Base::factor;
  using Base::key_sums;
  using Base::kKeyTiles;
  using Base::kRowTiles;
  using Base::kTiles;
  using Base::limit;
  using Base::m;
  using Base::multiply;
  using Base::p;
  using Base::team;
  using Base::weighted_sums;
  using typename Base::Memory;
  using typename Base::T;

  Acc state[kKeyTiles];  // of queries, by own value channels and the warp's key channels
  WideConvGradient<E, kHead> conv;
  KeptTile<E> features_q, features_k;  // unless they are in shared memory

  __device__ ReverseSweep(const T& team, Memory& m) : Base(team, m), conv(team, m.conv) {}

  __device__ bool accumulates() const { return p.causal || !kGradients; }  // sums over queries
  __device__ bool needs_keys() const { return kGradients || p.causal; }
  __device__ E* stored_exchange() const {
    return static_cast<E*>(team.segment.chunk_states) + p.max_chunks * (kHead * kHead);
  }
  __device__ KeptTile<E>& phi_q() { return Memory::kKeepsFeatures ? m.phi_q[threadIdx.x] : features_q; }
  __device__ KeptTile<E>& phi_k() { return Memory::kKeepsFeatures ? m.phi_k[threadIdx.x] : features_k; }

  // The lane's rows of a chunk, as loaded.
  struct Inputs {
    LaneRows<E> q, k, v, g, d_y;
  };
  __device__ void load_gate(Inputs& in) const {
    in.d_y = team.template load<Matrices::kDY>(chunk);
    if (p.g.data) in.g = team.template load<Matrices::kG>(chunk);
  }

  // The gradient of the attention before the gate, and of the gate over the gated sum.
  __device__ void gate_back(const Inputs& in, Acc& a, Acc& d_gate) const {
    a = unpack_rows(in.d_y);
    keep_rows(a, team.rest(chunk));
    if (!p.g.data) return;
    const Acc g = unpack_rows(in.g);
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
    if (team.row_tile > 0) return;
    const int rows = team.rows();
    const int64_t left = team.segment.sequence_end - team.segment.end;
    chunk = {team, rows, left < kTile ? static_cast<int>(left) : kTile};
    Inputs in;
    load_gate(in);
    in.v = team.template load<Matrices::kV>(chunk);
    Acc a, d_gate;
    gate_back(in, a, d_gate);
    conv.prepare(team, unpack_rows(in.v), unpack_rows(conv.load_history(team, rows)), a);
  }

  __device__ void process(int i) {
    using Keys = StoredState<E, kHead>;
    begin_part(i);
    const Acc c = put_operands(i);
    __syncthreads();

    const RowPair inverses = this->inverse(team.row_tile);
    if (team.channel_tile == 0 && team.lane % 4 == 0) {
#pragma unroll
      for (int h = 0; h < 2; ++h) m.inverses[team.row_tile * kTile + team.lane / 4 + 8 * h] = inverses.x[h];
    }
    if (p.causal) compute_scores();
    Acc o;
    {
      const Keys keys(team, i);
      multiply(o, m.q, [&](int t) { return load_tile_of_state<E, false>(keys.tile(team.channel_tile, t)); });
    }
    if (Memory::kHasP) scale_rows(o, inverses);
    if (p.causal) {
      __syncthreads();
      this->template add_scores<false>(o, Memory::kHasP ? Memory::kP : Memory::kPZ, m.v, factor);
    }
    if (!Memory::kHasP) scale_rows(o, inverses);
    finish_rows(o, c, inverses);
    __syncthreads();

    begin_part(i);
    if constexpr (kGradients) {
      finish_values(i);
      finish_queries(Keys(team, i));
    }
    if (accumulates()) add_queries();
    begin_part(i);
    finish_keys();
    __syncthreads();
  }

  // Stores the chunk's operands and parts of its denominators. Returns SiLU of the convolution, or zeros.
  __device__ Acc put_operands(int i) {
    Inputs in;
    const int n = team.rest(chunk);
    if (needs_keys()) in.v = team.template load<Matrices::kV>(chunk);
    Acc c;
    if (needs_keys()) store_split<E>(m.v.tile(team.channel_tile, team.row_tile), to_split(in.v), team.at);
    if constexpr (kGradients) {
      load_gate(in);
      Acc a, d_gate;
      gate_back(in, a, d_gate);
      store_tile<E>(m.a.tile(team.channel_tile, team.row_tile), a, team.at);
      if (p.kernel_size > 0 && n > 0) {
        const LaneRows<E> history = conv.load_history(team, chunk.first + team.row_tile * kTile);
        c = conv.step(team, unpack_rows(in.v), unpack_rows(history), a, i);
      }
#pragma unroll
      for (int t = 0; t < kKeyTiles; ++t) {
        const int tile = (team.channel_tile * kTiles + team.first_key_tile() + t) * kPackedTile;
        if constexpr (Memory::kExchange)
          store_tile<E>(m.exchange + tile, state[t], team.at);
        else
          store_tile_of_state<E>(stored_exchange() + tile, state[t], 1.f);
      }
      limit(0);
    }
    in.q = team.template load<Matrices::kQ>(chunk);
    if (needs_keys()) in.k = team.template load<Matrices::kK>(chunk);
    const LaneAngles angles = team.load_angles(chunk);
    const Acc q = features(in.q, n);
    phi_q() = KeptTile<E>(q);
    store_tile<E>(m.q.tile(team.channel_tile, team.row_tile), rotate<false>(q, angles), team.at);
    KeptTile<E> kept_k;
    if (needs_keys()) {
      const Acc k = features(in.k, n);
      kept_k = KeptTile<E>(k);
      phi_k() = kept_k;
      store_tile<E>(m.k.tile(team.channel_tile, team.row_tile), rotate<false>(k, angles), team.at);
    }
    team.put_row_sums(m.by_channel[0], q, key_sums(StoredState<E, kHead>(team, i), kept_k));
    return c;
  }

  // The gradient of the gate, from the rows' attention and SiLU of the convolution. Replaces a by u, times n for
  // float16.
  __device__ void finish_rows(const Acc& o, const Acc& c, const RowPair& inverses) {
    Inputs in;
    load_gate(in);
    Acc a, d_gate;
    gate_back(in, a, d_gate);
    team.put_row_sums(m.by_channel[1], a, o);
    scale_rows(a, inverses);
    if constexpr (kScaled<E>) scale(a, kGradientRange<E, kHead>);
    store_tile<E>(m.a.tile(team.channel_tile, team.row_tile), a, team.at);
    if constexpr (kGradients) {
      if (p.g.data) {
#pragma unroll
        for (int e = 0; e < 8; ++e) d_gate.x[e / 4][e % 4] *= o.x[e / 4][e % 4] + c.x[e / 4][e % 4];
        team.template store<Matrices::kDG>(chunk, d_gate);
      }
    }
  }

  // The gradient of values.
  __device__ void finish_values(int i) {
    Acc d_v;
    multiply(d_v, m.k, [&](int t) {
      const int tile = (team.channel_tile * kTiles + t) * kPackedTile;
      if constexpr (kKeyTiles == kTiles)
        return as_right(to_split<E>(state[t]));
      else if constexpr (Memory::kExchange)
        return load_right<E, false>(m.exchange + tile, team.at);
      else
        return load_tile_of_state<E, false>(stored_exchange() + tile);
    });
    if (p.causal) this->template add_scores<true>(d_v, Memory::kPZ, m.a, factor);
    if (p.kernel_size > 0) {
      conv.add_gradient(team, d_v, i);
      if (team.rest(chunk) > 0) {
        if constexpr (sizeof(E) == 2)
          conv.add_weights(team, m.v.tile(team.channel_tile, team.row_tile));
        else
          conv.add_weights(team, nullptr);
        if (p.d_final_history) conv.add_final_gradient(team, d_v, chunk.first + team.row_tile * kTile);
      }
    }
    team.template store<Matrices::kDV>(chunk, d_v);
  }

  // The gradient of queries.
  __device__ void finish_queries(const StoredState<E, kHead>& keys) {
    Acc d_q;
    multiply(d_q, m.a, [&](int t) { return load_tile_of_state<E, true>(keys.tile(t, team.channel_tile)); });
    if constexpr (kScaled<E>) scale(d_q, 1.f / kGradientRange<E, kHead>);
    if (p.causal) this->template add_scores<false>(d_q, Memory::kW, m.k, factor);
    // Computing these sums again is cheaper than holding the registers until here.
    const Acc sums = key_sums(keys, phi_k());
    Acc d = rotate<true>(d_q, team.load_angles(chunk));
    const Acc f = phi_q().acc();
    const RowPair d_z = this->denominator_gradients();
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      float& x = d.x[i / 4][i % 4];
      x += d_z.x[i / 2 % 2] * sums.x[i / 4][i % 4];
      x *= phi_grad(f.x[i / 4][i % 4]);
    }
    team.template store<Matrices::kDQ>(chunk, d);
  }

  // Adds R phi(q) (x) u of the chunk to the state of queries.
  __device__ void add_queries() {
    Split<E> u[kRowTiles];
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) u[r] = load_left<E, true>(m.a.tile(team.channel_tile, r), team.at);
#pragma unroll
    for (int t = 0; t < kKeyTiles; ++t) {
      limit(t);
      Acc part;
      Acc& to = kScaled<E> ? part : state[t];
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r)
        add_product(to, u[r], load_right<E, true>(m.q.tile(team.first_key_tile() + t, r), team.at));
      if constexpr (kScaled<E>) add_scaled(state[t], part, factor / kGradientRange<E, kHead>);
    }
  }

  // The gradient of keys, and the sum of d_Z phi(q).
  __device__ void finish_keys() {
    // Every warp reads the sums of its channels. The warps of the first row tile store the next ones.
    LaneChannels sum = load_channels(m.sums[accumulates() ? (this->index + 1) % 2 : 0] + team.channel());
    Acc d_phi = equal_rows(sum);
    if (accumulates()) {
      const Acc weighted = weighted_sums(this->denominator_gradients(), phi_q().split());
      const LaneChannels own = channels_of_row<0>(weighted);
      add_scaled(d_phi, weighted, factor);
      if constexpr (kRowTiles == 1) {
        add_scaled(sum, own, factor);
      } else {
        if (team.lane < 4) store_channels(m.by_row[0][team.row_tile] + team.channel(), own, factor);
        __syncthreads();
#pragma unroll
        for (int r = 0; r < kRowTiles; ++r) {
          const LaneChannels other = load_channels(m.by_row[0][r] + team.channel());
          add_scaled(sum, other, 1.f);
          if (kGradients && r > team.row_tile) add_scaled(d_phi, equal_rows(other), 1.f);
        }
      }
      if (team.row_tile == 0 && team.lane < 4) store_channels(m.sums[this->index % 2] + team.channel(), sum, 1.f);
    }
    if constexpr (!kGradients) return;
    Acc d_k;
    multiply(d_k, m.v, [&](int t) {
      const int tile = (t * kTiles + team.channel_tile) * kPackedTile;
      if constexpr (Memory::kExchange)
        return load_right<E, true>(m.exchange + tile, team.at);
      else
        return load_tile_of_state<E, true>(stored_exchange() + tile);
    });
    if (p.causal) this->template add_scores<true>(d_k, Memory::kW, m.q, factor);
    Acc d = rotate<true>(d_k, team.load_angles(chunk));
    const Acc f = phi_k().acc();
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      float& x = d.x[i / 4][i % 4];
      x += d_phi.x[i / 4][i % 4];
      x *= phi_grad(f.x[i / 4][i % 4]);
    }
    team.template store<Matrices::kDK>(chunk, d);
  }

  __device__ void run() {
    team.find_indices(computed_here(threadIdx.x));
    const RelaSegment& segment = team.segment;
    const float* after = nullptr;
    if constexpr (kGradients) {
      if (!p.causal || segment.count > 1)
        after = team.state(p.query_states);
      else if (p.d_final_kv_state)
        after = team.sequence_state(p.d_final_kv_state);
    }
    LaneChannels sum;
    team.load_state(after, state, sum);
    if (team.row_tile == 0 && team.lane < 4)
      store_channels(m.sums[accumulates() ? team.chunks() % 2 : 0] + team.channel(), sum, 1.f);
    const bool convolves = kGradients && p.kernel_size > 0;
    if (convolves) {
      conv.load_weights(team);
      __syncthreads();
      if (p.kernel_size > 1 && segment.end < segment.sequence_end) prepare_conv();
    }
    for (int i = team.chunks() - 1; i >= 0; --i) process(i);
    team.find_indices(computed_here(threadIdx.x));
    if constexpr (kGradients) {
      if (convolves) conv.store_weights(team);
      if (!segment.is_first()) return;
      if (p.d_initial_kv_state) team.store_state(team.sequence_state(p.d_initial_kv_state), state, m.sums[0]);
      if (p.d_initial_history && p.kernel_size > 1) conv.store_initial_history(team);
    } else {
      team.store_state(team.state(p.query_states), state, m.sums[0]);
    }
  }
};

}  // namespace recgrela::cuda
