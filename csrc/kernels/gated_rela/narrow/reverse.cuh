// Reverse sweep of the backward of gated_rela over a segment, for heads of up to 32 channels.
//
// With a = d_y SiLU(g), Z the denominator, O the numerator of the attention, u = a / Z and d_Z = -(a . O) / Z^2:
//   d(R phi(q))_i = u_i S_i^T,      d phi(q)_i += d_Z_i z_i
//   d(R phi(k))_j = v_j U_j^T,      d phi(k)_j += w_j,        d_v_j = R phi(k)_j U_j + the convolution's
//   where U_j = sum_i R phi(q)_i (x) u_i, w_j = sum_i d_Z_i phi(q)_i     over i >= j (causal) or all i
// in chunks as in the forward: products within the chunk and with a state. S and z accumulate forward along the
// segment, U and w in reverse. Therefore a light sweep over keys and values stores S and z before each chunk
// (key_states.cuh), and one reverse sweep computes all gradients, or only the sums U and w of the segment.
//
// float16, whose range is small: O is over Z already and the products that become operands again are over n, the number
// of keys, or kRange: S / n, n d_Z, and u' = kRange n u, since n / Z is about one over the number of channels.
#pragma once

#include "kernels/gated_rela/narrow/key_states.cuh"

namespace recgrela::cuda::narrow {

template <typename E, int kHead>
constexpr float kRange = kScaled<E> ? kHead : 1;

template <typename E, int kHead>
struct BackwardMemory {
  static constexpr int kTiles = kHead / kTile;
  struct alignas(16) Stage {
    // Rows. R phi(q), R phi(k) and u replace q, k and d_y as operands, and d_g replaces g.
    unsigned char q[kRowsOrTileBytes<E>], k[kRowsOrTileBytes<E>], d_y[kRowsOrTileBytes<E>], g[kRowsBytes<E>];
    unsigned char v[ShiftedRows<E>::kBytes], angles[kRowsBytes<float>];
    KeyState<E, kHead> key_state;  // bidirectional: of the first stage
  };
  struct alignas(16) Warp {
    Stage stages[2];
    unsigned char plain_q[kTileBytes<E>], plain_k[kTileBytes<E>];  // phi
    unsigned char values[sizeof(E) == 4 ? kTileBytes<E> : 16];     // v as an operand
    unsigned char weights[sizeof(E) == 2 ? kTileBytes<E> : 16];    // products of rows of the chunk; float32: in plain_k
    unsigned char d_q[sizeof(E) == 2 ? kRowsBytes<E> : 16], d_k[sizeof(E) == 2 || kTiles > 1 ? kRowsBytes<E> : 16];
    unsigned char d_v[sizeof(E) == 2 ? kRowsBytes<E> : 16];
    unsigned char query_state[kTiles][kTileBytes<E>];  // U, own value channels by all key channels
    unsigned char d_c[ShiftedRows<E>::kBytes];
    alignas(16) unsigned char conv[Convolution<E>::kSharedBytes + 16];
    float4 sums[2][4];                       // w, as in KeyState
    float denominators[kTile], dots[kTile];  // sums over own channels, for the other warps
  };
  union {
    Warp warps[kTiles];
    KeyStatesMemory<E, kHead> keys;  // for the sweep over keys, before the reverse sweep
  };
  RelaSegment segment;
};

// Rows of a chunk in global memory that this lane stores. 16-bit rows pass through a tile of shared memory, so that a
// lane stores 16 bytes.
template <typename E, int kHead>
struct Output {
  E* rows = nullptr;

  __device__ void find(const Unit<E, kHead>& unit, const RowMatrix& m, int chunk) {
    rows = sizeof(E) == 2 ? unit.lane_rows(m, chunk) : unit.lane_elements(m, chunk);
  }
  // Stores n rows, or puts them in the tile.
  __device__ void put(const Unit<E, kHead>& unit, const RowMatrix& m, unsigned char* tile, const Acc& a, int n) const {
    if constexpr (sizeof(E) == 2) {
      store_tile(unit.at, tile, to_split<E>(a));
    } else {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        E* const out = rows + 8 * h * static_cast<int>(m.stride);
        if (unit.at.lane / 4 + 8 * h >= n) continue;
        store2(out, a.x[0][2 * h], a.x[0][2 * h + 1]);
        if (unit.owns(8)) store2(out + 8, a.x[1][2 * h], a.x[1][2 * h + 1]);
      }
    }
  }
  // Stores the rows in the tile, after a barrier, and moves to the chunk before.
  __device__ void get(const Unit<E, kHead>& unit, const RowMatrix& m, const unsigned char* tile, int n) {
    if constexpr (sizeof(E) == 2) {
      const uint4 x = *reinterpret_cast<const uint4*>(tile + unit.part.to);
      if (unit.part.row < n) *reinterpret_cast<uint4*>(rows) = x;
    }
    rows -= kTile * static_cast<int>(m.stride);
  }
};

template <typename E, int kHead, bool kCausal, bool kSumsOnly>
struct Reverse {
  using Memory = BackwardMemory<E, kHead>;
  using Stage = typename Memory::Stage;
  static constexpr int kTiles = kHead / kTile;
  static constexpr bool kOne = kTiles == 1, kInRegisters = kOne && kParts<E> == 1;
  static constexpr bool kUsesKeys = kCausal || !kSumsOnly;
  static constexpr bool kKeepsRows = sizeof(E) == 4 && !kOne;  // phi(k) is in shared memory, to save registers

  const Unit<E, kHead>& unit;
  Memory& memory;
  typename Memory::Warp& own;
  const TileLane& at;
  const TileMasks masks;
  Acc state[kTiles];  // U, own value channels by all key channels
  Convolution<E> convolution;
  Output<E, kHead> d_q, d_k, d_v, d_g;
  int first_final, first_in_sequence;    // chunks that reach the final history, and that the initial history precedes
  const int has_gates, width;            // width 0: no angles
  const int straight, swapped, shifted;  // offsets of this lane in ShiftedRows: of values, and of what it copies

  __device__ Reverse(const Unit<E, kHead>& unit, Memory& memory)
      : unit(unit),
        memory(memory),
        own(memory.warps[unit.warp]),
        at(unit.at),
        masks(unit.at.lane),
        has_gates(unit.keep_uniform(unit.p.g.data != nullptr)),
        width(unit.keep_uniform(unit.p.rotary ? static_cast<int>(unit.p.width()) : 0)),
        straight(keep(ShiftedRows<E>::straight(at.lane))),
        swapped(keep(ShiftedRows<E>::swapped(at.lane))),
        shifted(sizeof(E) == 2
                    ? straight
                    : keep(ShiftedRows<E>::vector(RowPart<E>::row_of(at.lane), RowPart<E>::column_of(at.lane)))) {}

  __device__ Stage& stage_of(int t, int stage) const { return memory.warps[t].stages[stage]; }
  __device__ const KeyState<E, kHead>& key_state(int t, int stage) const {
    return stage_of(t, kCausal ? stage : 0).key_state;
  }
  __device__ unsigned char* weights_tile() const { return sizeof(E) == 2 ? own.weights : own.plain_k; }
  // Operand A of warp t's features; in registers if those are the only ones.
  __device__ Split<E> left(const Split<E>& in_registers, const unsigned char* tile) const {
    return kInRegisters ? in_registers : load_left<E>(at, tile);
  }
  __device__ Split<E> values_left(int t, int stage) const {
    if constexpr (sizeof(E) == 4) return load_left<E>(at, memory.warps[t].values);
    Split<E> m;
    load_matrices<false>(m.part[0].r, stage_of(t, stage).v + ShiftedRows<E>::kHistory + straight);
    return m;
  }
  __device__ RightSplit<E> values_right(int t, int stage) const {
    if constexpr (sizeof(E) == 4) return load_right<E>(at, memory.warps[t].values);
    return load_right_at<E, false>(stage_of(t, stage).v + ShiftedRows<E>::kHistory + swapped);
  }
  __device__ RightSplit<E> values_right_transposed(int stage) const {
    if constexpr (sizeof(E) == 4) return load_right_transposed<E>(at, own.values);
    return load_right_at<E, true>(own.stages[stage].v + ShiftedRows<E>::kHistory + straight);
  }

  __device__ Acc load_sums(const float4 (&sums)[2][4]) const {
    const float4 x = sums[0][at.lane % 4], y = sums[1][at.lane % 4];
    return {{{x.x, x.y, x.z, x.w}, {y.x, y.y, y.z, y.w}}};
  }
  // Sums over all channels of the head of the sums over own channels.
  __device__ void add_warps(RowPair& sums, float (Memory::Warp::*shared)[kTile]) const {
    if constexpr (!kOne) {
      float* const out = own.*shared;
      if (at.lane % 4 == 0) out[at.lane / 4] = sums.x[0], out[at.lane / 4 + 8] = sums.x[1];
      unit.sync();
      sums = {};
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
        const float* const in = memory.warps[t].*shared;
        sums.x[0] += in[at.lane / 4], sums.x[1] += in[at.lane / 4 + 8];
      }
    }
  }
  static __device__ RowPair row_dot(const Acc& a, const Acc& b) {
    RowPair dot;
#pragma unroll
    for (int i = 0; i < 8; ++i) dot.x[i / 2 % 2] += a.x[i / 4][i % 4] * b.x[i / 4][i % 4];
    return {{quad_sum(dot.x[0]), quad_sum(dot.x[1])}};
  }

  // One chunk of n rows. `keys` is the number of keys of the row that this lane holds first, and `num_keys` that of
  // the last row.
  __device__ void chunk(int i, int s, int n, float keys, float num_keys) {
    const RelaPlan& p = unit.p;
    Stage& m = own.stages[s];
    const bool gates = has_gates != 0, convolves = !kSumsOnly && p.kernel_size > 0;
    const float factor = kScaled<E> ? fast_reciprocal(num_keys) : 1.f;

    // ---- features ----
    Acc fq = load_rows<E>(at, m.q), fk;
    Split<E> query, key;
    {
      const TileAngles angles = load_angles(at, m.angles);
      apply_phi(fq);
      query = to_split<E>(rotate(fq, angles));
      if constexpr (kUsesKeys) {
        fk = load_rows<E>(at, m.k);
        apply_phi(fk);
        key = to_split<E>(rotate(fk, angles));
      }
    }
    if constexpr (sizeof(E) == 4) __syncwarp();  // other lanes may still read the rows
    store_tile(at, m.q, query);
    store_tile(at, own.plain_q, to_split<E>(fq));
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
      const uint32_t lower[4] = {kOnes<E> & masks.lower, kOnes<E>, 0, kOnes<E> & masks.lower};
      const RightSplit<E> plain = load_right_transposed<E>(at, own.plain_k);
      if constexpr (kParts<E> == 1) {
        add_ones_product<E>(running, lower, plain);
      } else {
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

    // ---- numerators and the gradients of both ----
    ShortSum<E> numerator;
    if constexpr (kCausal) {
      ShortSum<E> products;
#pragma unroll
      for (int t = 0; t < kTiles; ++t) products.add(left(query, stage_of(t, s).q), load_right<E>(at, stage_of(t, s).k));
      Acc scores = products.total();
      if constexpr (kScaled<E>) {
        if constexpr (!kSumsOnly) {
          Acc over_range = scores;
          scale(over_range, 1.f / kRange<E, kHead>);
          Split<E> weights = to_split<E>(over_range);
          keep_lower(weights, masks);
          store_tile(at, weights_tile(), weights);
        }
        scale_rows(scores, inverse);
      }
      Split<E> weights = to_split<E>(scores);
      keep_lower(weights, masks);
      numerator.add(weights, values_right_transposed(s));
      if constexpr (kScaled<E>) scale(numerator.large, factor);
      if constexpr (!kScaled<E> && !kSumsOnly) store_tile(at, weights_tile(), weights);
    }
    if constexpr (kScaled<E>) {
      ShortSum<E> with_state;
#pragma unroll
      for (int t = 0; t < kTiles; ++t)
        with_state.add(left(query, stage_of(t, s).q), load_right<E>(at, key_state(unit.warp, s).tiles[t]));
      scale_rows(with_state.total(), inverse);
      add_scaled(numerator.large, with_state.large, 1.f);
    } else {
#pragma unroll
      for (int t = 0; t < kTiles; ++t)
        numerator.add(left(query, stage_of(t, s).q), load_right<E>(at, key_state(unit.warp, s).tiles[t]));
    }
    const Acc& o = numerator.total();

    // ---- gates, convolution ----
    Acc a = load_rows<E>(at, m.d_y), silu;
    float d_gate[2][4];
    if (gates) {
      const Acc gate = load_scaled_rows<E>(at, m.g);
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const int j = i / 4, e = i % 4;
        gate_back<E>(gate.x[j][e], a.x[j][e], a.x[j][e], d_gate[j][e]);
      }
    }
    if (convolves) silu = convolution.back(m.v, a, own.d_c, at, straight);
    RowPair d_z = row_dot(a, o);
    if (gates && !kSumsOnly) {
      Acc out;
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const int j = i / 4, e = i % 4;
        const float attention = kScaled<E> ? o.x[j][e] : o.x[j][e] * inverse.x[e / 2];
        out.x[j][e] = d_gate[j][e] * (attention + silu.x[j][e]);
      }
      d_g.put(unit, p.d_g, m.g, out, n);
    }
    scale_rows(a, inverse);
    if constexpr (kScaled<E>) scale(a, kRange<E, kHead>);
    const Split<E> u = to_split<E>(a);
    store_tile(at, m.d_y, u);
    RightSplit<E> state_right[kTiles];
    if constexpr (kCausal && !kSumsOnly) {
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
        state_right[t] = to_right<E>(state[t]);
        store_tile(at, own.query_state[t], state_right[t]);
      }
    }
    add_warps(d_z, &Memory::Warp::dots);
    if constexpr (kOne) __syncwarp();
#pragma unroll
    for (int h = 0; h < 2; ++h) d_z.x[h] *= kScaled<E> ? -inverse.x[h] : -inverse.x[h] * inverse.x[h];
    if (gates && !kSumsOnly) d_g.get(unit, p.d_g, m.g, n);

    // ---- gradient of values ----
    const RightSplit<E> u_right = load_right_transposed<E>(at, m.d_y);
    if constexpr (!kSumsOnly) {
      ShortSum<E> products;
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
        if constexpr (kParts<E> > 1 || !kCausal) state_right[t] = load_right<E>(at, own.query_state[t]);
        products.add(load_left<E>(at, stage_of(t, s).k), state_right[t]);
      }
      if constexpr (kCausal) {
        add_rows(products, load_left_transposed<E>(at, weights_tile()), u_right, factor);
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
        const uint32_t low = (x & 0xffffu) | y << 16, high = x >> 16 | (y & 0xffff0000u);
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
        for (int t = 0; t < kTiles; ++t) products.add(left(u, stage_of(t, s).d_y), values_right(t, s));
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
        with_keys.add(left(u, stage_of(t, s).d_y), load_right_transposed<E>(at, key_state(t, s).tiles[unit.warp]));
        with_queries.add(values_left(t, s), load_right_transposed<E>(at, memory.warps[t].query_state[unit.warp]));
      }
      if constexpr (kScaled<E>) {
        scale(query_states.large, 1.f / kRange<E, kHead>);
        add_scaled(query_states.large, for_queries.large, factor);
        add_scaled(key_states.large, for_keys.large, factor);
      }
      const TileAngles angles = load_angles(at, m.angles);
      Acc more = running;
      scale_rows(more, kScaled<E> ? RowPair{{d_z.x[0] * factor, d_z.x[1] * factor}} : d_z);
      d_q.put(unit, p.d_q, own.d_q,
              feature_gradient(sizeof(E) == 2 ? load_rows<E>(at, own.plain_q) : fq,
                               rotate_back(with_keys.total(), angles, more)),
              n);
      if constexpr (sizeof(E) == 2 || kKeepsRows) fk = load_rows<E>(at, kKeepsRows ? own.d_k : own.plain_k);
      more = add_to_sums(d_z_after, factor);
      d_k.put(unit, p.d_k, own.d_k, feature_gradient(fk, rotate_back(with_queries.total(), angles, more)), n);
    }
    if constexpr (kCausal || kSumsOnly) {
      const Split<E> gradients = load_left_transposed<E>(at, m.d_y);
#pragma unroll
      for (int t = 0; t < kTiles; ++t)
        add_state(state[t], gradients, load_right_transposed<E>(at, stage_of(t, s).q), factor / kRange<E, kHead>);
      if constexpr (kSumsOnly) add_to_sums(d_z_after, factor);
    }
    if constexpr (!kSumsOnly) {
      __syncwarp();
      d_v.get(unit, p.d_v, own.d_v, n), d_q.get(unit, p.d_q, own.d_q, n), d_k.get(unit, p.d_k, own.d_k, n);
      if (convolves) keep_conv_gradient();
    }
  }

  // ---- convolution across chunks ----

  // Moves the gradients of c at the first rows of a chunk to the rows after the chunk that is processed next.
  __device__ void keep_conv_gradient() const {
    if (unit.part.row >= kMaxHistory) return;
    unsigned char* const first = own.d_c + shifted;
    *reinterpret_cast<uint4*>(first + kTile * ShiftedRows<E>::kStride) = *reinterpret_cast<const uint4*>(first);
  }
  // Computes the gradients of c at the kMaxHistory rows after the segment, zeros after the sequence.
  __device__ void find_conv_gradient_after() const {
    const RelaPlan& p = unit.p;
    const RelaSegment& segment = unit.segment;
    for (int i = at.lane; i < kMaxHistory * kTile; i += 32) {
      const int row = i / kTile, column = i % kTile;
      const int64_t at_row = segment.end + row, channel = unit.first_channel() + column;
      float d = 0.f;
      if (at_row < segment.sequence_end && column < unit.channels()) {
        auto load = [&](const RowMatrix& m, int64_t r) {
          return to_float(static_cast<const E*>(m.data)[r * m.stride + channel]);
        };
        d = load(p.d_y, at_row);
        float unused;
        if (p.g.data) gate_back<E>(load(p.g, at_row) * kSiluScale<E>, d, d, unused);
        float c = p.conv_bias[channel];
        for (int k = 0; k < kMaxKernelSize; ++k) c += conv_weight(p, channel, k) * load(p.v, at_row - kMaxHistory + k);
        silu_back<E>(c * kSiluScale<E>, d);
      }
      gradient_of_c(kTile + row, column) = from_float<E>(d);
    }
  }
  __device__ E& gradient_of_c(int row, int column) const {
    return *reinterpret_cast<E*>(own.d_c + ShiftedRows<E>::vector(row, column));
  }
  // Adds the gradient of the final history to the last values of the sequence, in chunk i.
  __device__ void add_final_gradient(Acc& d_value, int i) const {
    const RelaPlan& p = unit.p;
    const int history = p.kernel_size - 1;
    const E* const d_final_history = static_cast<const E*>(p.d_final_history);
    const int64_t first = unit.segment.begin + i * kTile - (unit.segment.sequence_end - history);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int j = i / 2, e = i % 2 * 2, column = tile_col(at.lane, j, 0);
      const int64_t row = first + tile_row(at.lane, e);
      if (row < 0 || row >= history || !unit.owns(column)) continue;
      const float2 c =
          load2(d_final_history + (unit.segment.sequence * history + row) * p.width() + unit.first_channel() + column);
      d_value.x[j][e] += c.x, d_value.x[j][e + 1] += c.y;
    }
  }
  // Stores the gradient of the initial history, from the gradients of c at the sequence's first rows, which
  // keep_conv_gradient has moved.
  __device__ void store_initial_history_gradient() const {
    const RelaPlan& p = unit.p;
    const E* const d_final_history = static_cast<const E*>(p.d_final_history);
    const int history = p.kernel_size - 1;
    for (int i = at.lane; i < history * kTile; i += 32) {
      const int back = i / kTile + 1, column = i % kTile;  // rows before the first of the sequence
      if (column >= unit.channels()) continue;
      const int64_t channel = unit.first_channel() + column, last = history - back - unit.segment.length();
      float d = 0.f;
      for (int s = back; s <= history; ++s)
        d += conv_weight(p, channel, kMaxHistory - s) * kSiluScale<E> *
             to_float(gradient_of_c(kTile + s - back, column));
      const int64_t base = unit.segment.sequence * history;
      if (d_final_history && last >= 0) d += to_float(d_final_history[(base + last) * p.width() + channel]);
      static_cast<E*>(p.d_initial_history)[(base + history - back) * p.width() + channel] = from_float<E>(d);
    }
  }

  // ---- the sweep ----

  // Addresses that this lane copies a chunk from.
  struct Sources {
    const E *q, *k, *v, *g, *d_y;
    const float* angles;
    const unsigned char* key_state;
  };
  // Starts to copy the n rows of chunk i and moves the addresses to the chunk before.
  __device__ void copy(Sources& from, int i, int stage, int n) const {
    const RelaPlan& p = unit.p;
    Stage& m = own.stages[stage];
    auto copy_rows = [&](unsigned char* to, const E*& rows, const RowMatrix& matrix) {
      const int stride = static_cast<int>(matrix.stride);
      unit.part.copy(to, rows, stride, n);
      rows -= kTile * stride;
    };
    if constexpr (kUsesKeys) {
      copy_rows(m.k, from.k, p.k);
      const int stride = static_cast<int>(p.v.stride);
      unsigned char* const to = m.v + shifted + ShiftedRows<E>::kHistory;
      copy_async16(to, from.v, unit.part.row < n);
      if constexpr (sizeof(E) == 4)
        copy_async16(to + 8 * ShiftedRows<E>::kStride, from.v + 8 * stride, unit.part.row + 8 < n);
      if (!kSumsOnly && p.kernel_size > 0 && unit.part.row < kMaxHistory)
        copy_async16(m.v + shifted, from.v - kMaxHistory * stride, i != first_in_sequence);
      from.v -= kTile * stride;
    }
    copy_rows(m.q, from.q, p.q);
    copy_rows(m.d_y, from.d_y, p.d_y);
    if (has_gates) copy_rows(m.g, from.g, p.g);
    if (width) {
      unit.angles_part.copy(m.angles, from.angles, width, n);
      from.angles -= kTile * width;
    }
    if constexpr (kCausal) {
      unsigned char* const to = reinterpret_cast<unsigned char*>(&m.key_state) + at.straight;
#pragma unroll
      for (int i = 0; i < int{sizeof(m.key_state)}; i += 512)
        if (i + 512 <= int{sizeof(m.key_state)} || at.lane < int{sizeof(m.key_state.sums)} / 16)
          copy_async16(to + i, from.key_state + i, true);
      from.key_state -= kTiles * int{sizeof(m.key_state)};
    }
  }
  // Replaces the values before the first chunk of a sequence by the initial history, before a barrier.
  __device__ void load_initial_history(unsigned char* v) const {
    const RelaPlan& p = unit.p;
    const int history = p.kernel_size - 1, i = unit.part.row - (kMaxHistory - history);
    if (i < 0 || i >= history) return;
    const E* const from = static_cast<const E*>(p.initial_history) + (unit.segment.sequence * history + i) * p.width() +
                          unit.first_channel() + RowPart<E>::column_of(at.lane);
    *reinterpret_cast<uint4*>(v + shifted) = *reinterpret_cast<const uint4*>(from);
  }

  __device__ void sweep() {
    const RelaPlan& p = unit.p;
    const RelaSegment& segment = unit.segment;
    const bool convolves = !kSumsOnly && p.kernel_size > 0;
    const float* after = nullptr;
    if (kSumsOnly) {
    } else if (!kCausal || segment.count > 1) {
      after = unit.state(p.query_states);
    } else if (p.d_final_kv_state) {
      after = unit.sequence_state(p.d_final_kv_state);
    }
    if constexpr (!kCausal) {
      Acc keys[kTiles], key_sum;
      unit.load_state(unit.state_before(), keys, key_sum);
      store_key_state(unit, &own.stages[0].key_state, keys, key_sum, unit.num_keys(0));
    }
    Acc sum;
    unit.load_state(after, state, sum);
    if (at.lane < 4) store_sums(sum);
    if constexpr (!kCausal && !kSumsOnly) {
#pragma unroll
      for (int t = 0; t < kTiles; ++t) store_tile(at, own.query_state[t], to_right<E>(state[t]));
    }
    if (convolves) {
      convolution.load(p, unit.first_channel(), unit.channels(), own.conv, at.lane);
      find_conv_gradient_after();
    }
    if (!p.rotary) unit.fill_angles(own.stages[0].angles), unit.fill_angles(own.stages[1].angles);

    const int last = unit.chunks() - 1;
    Sources from{unit.lane_rows(p.q, last),
                 unit.lane_rows(p.k, last),
                 unit.lane_rows(p.v, last),
                 unit.lane_rows(p.g, last),
                 unit.lane_rows(p.d_y, last),
                 unit.lane_angles(last),
                 reinterpret_cast<const unsigned char*>(kCausal ? unit.chunk_state(last) : nullptr) + at.straight};
    if constexpr (!kSumsOnly) {
      d_q.find(unit, p.d_q, last), d_k.find(unit, p.d_k, last);
      d_v.find(unit, p.d_v, last), d_g.find(unit, p.d_g, last);
    }
    int n = unit.rows() - last * kTile;
    first_in_sequence = convolves && segment.is_first() ? 0 : -1;
    const int64_t row = segment.sequence_end - p.kernel_size + 1 - segment.begin;  // the first of the final history
    first_final =
        convolves && p.d_final_history && row < unit.rows() ? (row < 0 ? 0 : static_cast<int>(row) / kTile) : last + 1;
    float num_keys = unit.num_keys(last);
    float keys = kCausal ? static_cast<float>(segment.position + last * kTile + at.lane / 4 + 1)
                         : static_cast<float>(segment.length());
    if (last >= 0) copy(from, last, 0, n);
    copies_commit();
    for (int i = last; i >= 0; --i) {
      const int stage = (last - i) % 2;
      copies_wait<0>();
      if (kHead == kTile && p.head_dim < kTile) {
        unit.part.fill_padding(own.stages[stage].q);
        if constexpr (kUsesKeys) unit.part.fill_padding(own.stages[stage].k);
        __syncwarp();
      }
      if (i == first_in_sequence && p.initial_history) load_initial_history(own.stages[stage].v);
      unit.sync();
      if (i > 0) copy(from, i - 1, 1 - stage, kTile);
      copies_commit();
      chunk(i, stage, n, keys, num_keys);
      n = kTile;
      if constexpr (kCausal) keys -= kTile;
      if constexpr (kCausal && kScaled<E>) num_keys -= kTile;
    }
    copies_wait<0>();
    __syncwarp();
    sum = load_sums(own.sums);

    if constexpr (kSumsOnly) {
      unit.store_state(unit.state(p.query_states), state, sum);
    } else {
      if (convolves) {
        float* const out = p.conv_partials + (segment.slot * p.width() + unit.first_channel()) * (kMaxKernelSize + 1);
        convolution.store_gradients(out, at, unit.channels());
      }
      if (!segment.is_first()) return;
      if (p.d_initial_kv_state) unit.store_state(unit.sequence_state(p.d_initial_kv_state), state, sum);
      if (p.d_initial_history && p.kernel_size > 1) {
        __syncwarp();
        store_initial_history_gradient();
      }
    }
  }

  // Adds products of rows of a chunk with each other to those with a state.
  static __device__ void add_rows(ShortSum<E>& d, const Split<E>& a, const RightSplit<E>& b, float factor) {
    if constexpr (kScaled<E>) {
      ShortSum<E> part;
      part.add(a, b);
      add_scaled(d.large, part.large, factor);
    } else {
      d.add(a, b);
    }
  }
  static __device__ void add_state(Acc& d, const Split<E>& a, const RightSplit<E>& b, float factor) {
    if constexpr (kScaled<E>) {
      Acc part;
      add_product(part, a, b);
      add_scaled(d, part, factor);
    } else {
      add_product(d, a, b);
    }
  }
  // Returns w at each row of the chunk and stores that of the first row, for the chunk before.
  __device__ Acc add_to_sums(const Split<E>& d_z_after, float factor) const {
    Acc sums = load_sums(own.sums);
    if constexpr (kCausal || kSumsOnly) {
      add_state(sums, d_z_after, load_right_transposed<E>(at, own.plain_q), factor);
      if (at.lane < 4) store_sums(sums);
    }
    return sums;
  }
  __device__ void store_sums(const Acc& sums) const {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      reinterpret_cast<float2*>(&own.sums[i / 2][at.lane])[i % 2] = make_float2(sums.x[i / 2][0], sums.x[i / 2][1]);
  }
  static __device__ Acc feature_gradient(const Acc& f, Acc d) {
#pragma unroll
    for (int i = 0; i < 8; ++i) d.x[i / 4][i % 4] *= fminf(f.x[i / 4][i % 4], 1.f);
    return d;
  }
};

}  // namespace recgrela::cuda::narrow
