// State of the reverse sweep, operands in shared memory, and sums over the head and over rows.
#pragma once

#include "kernels/gated_rela/narrow/backward_memory.cuh"

namespace recgrela::cuda::narrow {

template <typename E, int kHead, bool kCausal, bool kSumsOnly>
struct ReverseState {
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

  __device__ ReverseState(const Unit<E, kHead>& unit, Memory& memory)
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
  __device__ Acc load_sums(const float2 (&sums)[2][4]) const {
    const float2 x = sums[0][at.lane % 4], y = sums[1][at.lane % 4];
    return {{{x.x, x.y, x.x, x.y}, {y.x, y.y, y.x, y.y}}};
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
  static __device__ RowPair row_dot(const Acc& a, const Acc& b, float sign = 1.f) {
    RowPair dot;
#pragma unroll
    for (int i = 0; i < 8; ++i) dot.x[i / 2 % 2] += sign * a.x[i / 4][i % 4] * b.x[i / 4][i % 4];
    return {{quad_sum(dot.x[0]), quad_sum(dot.x[1])}};
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
    for (int j = 0; j < 2; ++j) own.sums[j][at.lane] = make_float2(sums.x[j][0], sums.x[j][1]);
  }
  // factor times the derivative of phi, given factor phi.
  static __device__ Acc derivative(Acc f, const RowPair& factor) {
#pragma unroll
    for (int i = 0; i < 8; ++i) f.x[i / 4][i % 4] = fminf(f.x[i / 4][i % 4], factor.x[i / 2 % 2]);
    return f;
  }
  // The derivative of phi at the keys of a chunk.
  __device__ Acc key_derivative(const Acc& fk) const {
    if constexpr (sizeof(E) == 2) {
      uint32_t r[4];
      load_matrices<false>(r, own.plain_k + at.straight);
#pragma unroll
      for (int i = 0; i < 4; ++i) r[i] = min_one2<E>(r[i]);
      return unpack_tile<E>(r);
    } else {
      return derivative(kKeepsRows ? load_rows<E>(at, own.d_k) : fk, {{1.f, 1.f}});
    }
  }
  static __device__ Acc multiply(Acc a, const Acc& b) {
#pragma unroll
    for (int i = 0; i < 8; ++i) a.x[i / 4][i % 4] *= b.x[i / 4][i % 4];
    return a;
  }
};

}  // namespace recgrela::cuda::narrow
