// Reverse sweep of the backward of gated_rela over a segment, for heads of up to 32 channels.
//
// With a = d_y SiLU(g), Z the denominator, o the attention and q = phi(q) / Z:
//   d phi(q)_i = (R^-1 (a_i S_i^T) - (a_i . o_i) z_i) / Z_i
//   d phi(k)_j = R^-1 (v_j U_j^T) + w_j,        d_v_j = R phi(k)_j U_j + the convolution's
//   where U_j = sum_i R q_i (x) a_i, w_j = -sum_i (a_i . o_i) q_i    over i >= j (causal) or all i
// in chunks as in the forward: products within the chunk and with a state. S and z accumulate forward along the
// segment, U and w in reverse. Therefore a light sweep over keys and values stores S and z before each chunk
// (key_states.cuh), and one reverse sweep computes all gradients, or only the sums U and w of the segment.
//
// Queries are over Z before they are rounded to operands of 16 bits: weights of a row with one key are then exactly 1,
// and the two terms of d phi(k), which nearly cancel in rows of few keys, contain the same rounded numbers.
//
// float16, whose range is small: q is n phi(q) / Z, where n is the number of keys and n / Z is about one over the
// number of channels. S is over n, products of q with keys or gradients are over n later, and sums of products with a
// over channels are over kRange, the number of channels, before they become operands again.
#pragma once

#include "kernels/gated_rela/narrow/reverse_chunk.cuh"

namespace recgrela::cuda::narrow {

template <typename E, int kHead, bool kCausal, bool kSumsOnly>
struct Reverse : ReverseChunk<E, kHead, kCausal, kSumsOnly> {
  using Base = ReverseChunk<E, kHead, kCausal, kSumsOnly>;
  using Base::at;
  using Base::Base;
  using Base::chunk;
  using Base::convolution;
  using Base::d_g;
  using Base::d_k;
  using Base::d_q;
  using Base::d_v;
  using Base::find_conv_gradient_after;
  using Base::first_final;
  using Base::first_in_sequence;
  using Base::has_gates;
  using Base::key_state;
  using Base::kTiles;
  using Base::kUsesKeys;
  using Base::load_sums;
  using Base::masks;
  using Base::own;
  using Base::shifted;
  using Base::state;
  using Base::store_initial_history_gradient;
  using Base::store_sums;
  using Base::unit;
  using Base::width;
  using typename Base::Stage;

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
    auto copy_rows = [&](unsigned char* to, const E*& rows, const RowMatrix& matrix, int step) {
      unit.part.copy(to, rows, static_cast<int>(matrix.stride), n);
      rows += step;
    };
    if constexpr (kUsesKeys) {
      copy_rows(m.k, from.k, p.k, p.steps.k);
      const int stride = static_cast<int>(p.v.stride);
      unsigned char* const to = m.v + shifted + ShiftedRows<E>::kHistory;
      copy_async16(to, from.v, unit.part.row < n);
      if constexpr (sizeof(E) == 4)
        copy_async16(to + 8 * ShiftedRows<E>::kStride, from.v + 8 * stride, unit.part.row + 8 < n);
      if (!kSumsOnly && p.kernel_size > 0 && unit.part.row < kMaxHistory)
        copy_async16(m.v + shifted, from.v - kMaxHistory * stride, i != first_in_sequence);
      from.v += p.steps.v;
    }
    copy_rows(m.q, from.q, p.q, p.steps.q);
    copy_rows(m.d_y, from.d_y, p.d_y, p.steps.d_y);
    if (has_gates) copy_rows(m.g, from.g, p.g, p.steps.g);
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

  // `has_weights`: an earlier unit of the team, which has the same head, has loaded the convolution's weights.
  __device__ void sweep(bool has_weights) {
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
      auto* const lane_state = reinterpret_cast<unsigned char*>(&own.stages[0].key_state) + at.lane * 4;
      store_key_state(unit, lane_state, keys, key_sum, unit.num_keys(0));
    }
    Acc sum;
    unit.load_state(after, state, sum);
    if (at.lane < 4) store_sums(sum);
    if constexpr (kCausal && kParts<E> == 1)
      own.lower[at.lane] = make_uint4(kOnes<E> & masks.lower, kOnes<E>, 0, kOnes<E> & masks.lower);
    if constexpr (!kCausal && !kSumsOnly) {
#pragma unroll
      for (int t = 0; t < kTiles; ++t) store_tile(at, own.query_state[t], to_right<E>(state[t]));
    }
    if (convolves) {
      convolution.load(p, unit.first_channel(), unit.channels(), own.conv, at.lane, has_weights);
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
    for (int i = last, stage = 0; i >= 0; --i, stage ^= 1) {
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
};

}  // namespace recgrela::cuda::narrow
