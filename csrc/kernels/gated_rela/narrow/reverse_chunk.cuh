// One chunk of the reverse sweep: gradients of its queries, keys, values and gates.
#pragma once

#include "kernels/gated_rela/narrow/conv_history.cuh"

namespace recgrela::cuda::narrow {

template <typename E, int kHead, bool kCausal, bool kSumsOnly>
struct ReverseChunk : ConvHistory<E, kHead, kCausal, kSumsOnly> {
  using Base = ConvHistory<E, kHead, kCausal, kSumsOnly>;
  using Base::add_final_gradient;
  using Base::add_rows;
  using Base::add_state;
  using Base::add_to_sums;
  using Base::add_warps;
  using Base::at;
  using Base::Base;
  using Base::convolution;
  using Base::d_g;
  using Base::d_k;
  using Base::d_q;
  using Base::d_v;
  using Base::derivative;
  using Base::first_final;
  using Base::has_gates;
  using Base::keep_conv_gradient;
  using Base::key_derivative;
  using Base::key_state;
  using Base::kInRegisters;
  using Base::kKeepsRows;
  using Base::kOne;
  using Base::kTiles;
  using Base::kUsesKeys;
  using Base::left;
  using Base::load_sums;
  using Base::masks;
  using Base::memory;
  using Base::multiply;
  using Base::own;
  using Base::row_dot;
  using Base::stage_of;
  using Base::state;
  using Base::straight;
  using Base::unit;
  using Base::values_left;
  using Base::values_right;
  using Base::values_right_transposed;
  using Base::weights_tile;
  using typename Base::Memory;
  using typename Base::Stage;

  // One chunk of n rows. `keys` is the number of keys of the row that this lane holds first, and `num_keys` that of
  // the last row.
  __device__ void chunk(int i, int s, int n, float keys, float num_keys) {
    const RelaPlan& p = unit.p;
    Stage& m = own.stages[s];
    const bool gates = has_gates != 0, convolves = !kSumsOnly && p.kernel_size > 0;
    const float factor = kScaled<E> ? fast_reciprocal(num_keys) : 1.f;

    // ---- features ----
    TileAngles angles = load_angles(at, m.angles);
    Acc fq = load_rows<E>(at, m.q), fk;
    apply_phi(fq);
    Split<E> key;
    if constexpr (kUsesKeys) {
      fk = load_rows<E>(at, m.k);
      apply_phi(fk);
      key = to_split<E>(rotate(fk, angles));
    }
    if constexpr (sizeof(E) == 4) __syncwarp();  // other lanes may still read the rows
    if constexpr (kUsesKeys) store_tile(at, m.k, key);
    if constexpr (kUsesKeys) store_tile(at, own.plain_k, to_split<E>(fk));
    if constexpr (kUsesKeys && kKeepsRows) store_rows(at, own.d_k, fk);
    if constexpr (sizeof(E) == 4 && kUsesKeys) {
      Acc values;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int row = kMaxHistory + 8 * (i % 2);
        const float2 x = *reinterpret_cast<const float2*>(
            m.v + ShiftedRows<E>::element(at.lane) + row * ShiftedRows<E>::kStride + i / 2 * ShiftedRows<E>::kBlock);
        values.x[i / 2][i % 2 * 2] = x.x, values.x[i / 2][i % 2 * 2 + 1] = x.y;
      }
      store_tile(at, own.values, to_split<E>(values));
    }
    __syncwarp();

    // ---- denominators ----
    Acc running = load_sums(key_state(unit.warp, s).sums);
    if constexpr (kCausal) {
      Acc part;
      const RightSplit<E> plain = load_right_transposed<E>(at, own.plain_k);
      if constexpr (kParts<E> == 1) {
        const uint4 ones = own.lower[at.lane];
        add_ones_product<E>(running, {ones.x, ones.y, ones.z, ones.w}, plain);
      } else {
        const uint32_t lower[4] = {kOnes<E> & masks.lower, kOnes<E>, 0, kOnes<E> & masks.lower};
        add_ones_product<E>(part, lower, plain);
        add_scaled(running, part, 1.f);
      }
    }
    RowPair denominator = row_dot(fq, running), inverse;
    add_warps(denominator, &Memory::Warp::denominators);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float z = denominator.x[h] + p.eps * (kCausal && h ? keys + 8.f : keys);
      inverse.x[h] = at.lane / 4 + 8 * h < n ? kScaled<E> ? fast_reciprocal(z) * num_keys : fast_reciprocal(z) : 0.f;
    }
    scale_rows(fq, inverse);
    const Split<E> query = to_split<E>(rotate(fq, angles));
    store_tile(at, m.q, query);
    store_tile(at, own.plain_q, to_split<E>(fq));
    if constexpr (!kInRegisters) unit.sync();

    // ---- attention ----
    ShortSum<E> attention;
    if constexpr (kCausal) {
      ShortSum<E> products;
#pragma unroll
      for (int t = 0; t < kTiles; ++t) products.add(left(query, stage_of(t, s).q), load_right<E>(at, stage_of(t, s).k));
      Split<E> weights = to_split<E>(products.total());
      keep_lower(weights, masks);
      attention.add(weights, values_right_transposed(s));
      if constexpr (kScaled<E>) scale(attention.large, factor);
      if constexpr (!kSumsOnly) store_tile(at, weights_tile(), weights);
    }
#pragma unroll
    for (int t = 0; t < kTiles; ++t)
      attention.add(left(query, stage_of(t, s).q), load_right<E>(at, key_state(unit.warp, s).tiles[t]));
    const Acc& o = attention.total();

    // ---- gates, convolution ----
    Acc a = load_rows<E>(at, m.d_y);
    float d_gate[2][4], silu[2][4];
    if (gates) {
      const Acc gate = load_scaled_rows<E>(at, m.g);
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const int j = i / 4, e = i % 4;
        gate_back<E>(gate.x[j][e], a.x[j][e], a.x[j][e], d_gate[j][e]);
      }
    }
    if (convolves) {
      convolution.back(m.v, a, own.d_c, at, straight, silu);
    } else {
#pragma unroll
      for (int i = 0; i < 8; ++i) silu[i / 4][i % 4] = 0.f;
    }
    RowPair dot = row_dot(a, o, -1.f);
    if (gates && !kSumsOnly) {
      Acc out;
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const int j = i / 4, e = i % 4;
        out.x[j][e] = d_gate[j][e] * (o.x[j][e] + silu[j][e]);
      }
      d_g.put(unit, p.d_g, m.g, out, n);
    }
    const Split<E> d_o = to_split<E>(a);
    store_tile(at, m.d_y, d_o);
    RightSplit<E> state_right[kTiles];
    if constexpr (kCausal && !kSumsOnly) {
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
        state_right[t] = to_right<E>(state[t]);
        store_tile(at, own.query_state[t], state_right[t]);
      }
    }
    add_warps(dot, &Memory::Warp::dots);
    if constexpr (kOne) __syncwarp();
    const RowPair d_z{{dot.x[0] / kRange<E, kHead>, dot.x[1] / kRange<E, kHead>}};
    if (gates && !kSumsOnly) d_g.get(unit, p.steps.d_g, m.g, n);

    // ---- gradient of values ----
    const RightSplit<E> d_o_right = load_right_transposed<E>(at, m.d_y);
    if constexpr (!kSumsOnly) {
      ShortSum<E> products;
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
        if constexpr (kParts<E> > 1 || !kCausal) state_right[t] = load_right<E>(at, own.query_state[t]);
        products.add(load_left<E>(at, stage_of(t, s).k), state_right[t]);
      }
      if constexpr (kCausal) {
        add_rows(products, load_left_transposed<E>(at, weights_tile()), d_o_right, factor);
      }
      Acc& d_value = products.total();
      if (convolves) convolution.add_gradients(d_value, m.v, own.d_c, at, straight);
      if (i >= first_final) add_final_gradient(d_value, i);
      d_v.put(unit, p.d_v, own.d_v, d_value, n);
    }

    // ---- d_Z in the columns i >= j of row j, for sums over those rows i ----
    Split<E> d_z_after;
    if constexpr (kCausal || kSumsOnly) {
      const int source = at.lane % 4 * 8;
      if constexpr (kParts<E> == 1) {
        const uint32_t pair = pack2<E>(d_z.x[0], d_z.x[1]);
        const uint32_t x = __shfl_sync(0xffffffffu, pair, source), y = __shfl_sync(0xffffffffu, pair, source + 4);
        [[maybe_unused]] const uint32_t low = (x & 0xffffu) | y << 16, high = x >> 16 | (y & 0xffff0000u);
        d_z_after.part[0] = {{low, low, high, high}};
      } else {
        float z[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) z[i] = __shfl_sync(0xffffffffu, d_z.x[i / 2], source + i % 2 * 4);
        const Split2<E> low(z[0], z[1]), high(z[2], z[3]);
#pragma unroll
        for (int i = 0; i < kParts<E>; ++i)
          d_z_after.part[i] = {{low.part[i], low.part[i], high.part[i], high.part[i]}};
      }
      keep_upper(d_z_after, masks);
    }

    // ---- gradients of queries and keys ----
    if constexpr (!kSumsOnly) {
      ShortSum<E> for_queries, for_keys;
      if constexpr (kCausal) {
        ShortSum<E> products;
#pragma unroll
        for (int t = 0; t < kTiles; ++t) products.add(left(d_o, stage_of(t, s).d_y), values_right(t, s));
        Acc& d_scores = products.total();
        if constexpr (kScaled<E>) scale(d_scores, 1.f / kRange<E, kHead>);
        Split<E> weights = to_split<E>(d_scores);
        keep_lower(weights, masks);
        for_queries.add(weights, load_right_transposed<E>(at, m.k));
        __syncwarp();  // other lanes may still read the tile
        store_tile(at, weights_tile(), weights);
        __syncwarp();
        weights = load_left_transposed<E>(at, weights_tile());
        for_keys.add(weights, load_right_transposed<E>(at, m.q));
      }
      ShortSum<E> query_states, key_states;
      ShortSum<E>& with_keys = kScaled<E> ? query_states : for_queries;
      ShortSum<E>& with_queries = kScaled<E> ? key_states : for_keys;
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
        with_keys.add(left(d_o, stage_of(t, s).d_y), load_right_transposed<E>(at, key_state(t, s).tiles[unit.warp]));
        with_queries.add(values_left(t, s), load_right_transposed<E>(at, memory.warps[t].query_state[unit.warp]));
      }
      if constexpr (kScaled<E>) {
        add_scaled(query_states.large, for_queries.large, factor * kRange<E, kHead>);
        add_scaled(key_states.large, for_keys.large, factor * kRange<E, kHead>);
      }
      angles = load_angles(at, m.angles);
      Acc more = running;
      scale_rows(more, kScaled<E> ? RowPair{{dot.x[0] * factor, dot.x[1] * factor}} : d_z);
      const Acc d_query = multiply(rotate_back(with_keys.total(), angles, more), derivative(fq, inverse));
      d_q.put(unit, p.d_q, own.d_q, d_query, n);
      const Acc at_keys = key_derivative(fk);
      more = add_to_sums(d_z_after, factor * kRange<E, kHead>);
      d_k.put(unit, p.d_k, own.d_k, multiply(rotate_back(with_queries.total(), angles, more), at_keys), n);
    }
    if constexpr (kCausal || kSumsOnly) {
      const Split<E> gradients = load_left_transposed<E>(at, m.d_y);
#pragma unroll
      for (int t = 0; t < kTiles; ++t)
        add_state(state[t], gradients, load_right_transposed<E>(at, stage_of(t, s).q), factor);
      if constexpr (kSumsOnly) add_to_sums(d_z_after, factor * kRange<E, kHead>);
    }
    if constexpr (!kSumsOnly) {
      __syncwarp();
      d_v.get(unit, p.steps.d_v, own.d_v, n), d_q.get(unit, p.steps.d_q, own.d_q, n),
          d_k.get(unit, p.steps.d_k, own.d_k, n);
      if (convolves) keep_conv_gradient();
    }
  }
};

}  // namespace recgrela::cuda::narrow
