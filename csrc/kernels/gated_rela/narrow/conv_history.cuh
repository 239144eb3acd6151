// Gradients of the convolution across chunks, segments and the history of a sequence.
#pragma once

#include "kernels/gated_rela/narrow/reverse_state.cuh"

namespace recgrela::cuda::narrow {

template <typename E, int kHead, bool kCausal, bool kSumsOnly>
struct ConvHistory : ReverseState<E, kHead, kCausal, kSumsOnly> {
  using Base = ReverseState<E, kHead, kCausal, kSumsOnly>;
  using Base::at;
  using Base::Base;
  using Base::own;
  using Base::shifted;
  using Base::unit;

  // Moves the gradients of c at the first rows of a chunk to the rows after the chunk that is processed next.
  __device__ void keep_conv_gradient() const {
    if (unit.part.row >= kMaxHistory) return;
#pragma unroll
    for (int i = 0; i < kGradientBytes<E>; i += ShiftedRows<E>::kBytes) {
      unsigned char* const first = own.d_c + shifted + i;
      *reinterpret_cast<uint4*>(first + kTile * ShiftedRows<E>::kStride) = *reinterpret_cast<const uint4*>(first);
    }
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
#pragma unroll
      for (int part = 0; part < kGradientParts<E>; ++part) {
        E& rounded = gradient_of_c(part, kTile + row, column);
        rounded = from_float<E>(d);
        d -= to_float(rounded);
      }
    }
  }
  __device__ E& gradient_of_c(int part, int row, int column) const {
    return *reinterpret_cast<E*>(own.d_c + part * ShiftedRows<E>::kBytes + ShiftedRows<E>::vector(row, column));
  }
  // Adds the gradient of the final history to the last values of the sequence, in chunk i.
  __device__ void add_final_gradient(Acc& d_value, int i) const {
    const RelaPlan& p = unit.p;
    const int history = p.kernel_size - 1;
    const int first =
        static_cast<int>(unit.segment.begin - unit.segment.sequence_end) + history + i * kTile + at.lane / 4;
    const int64_t row_of_all = unit.segment.sequence * history + first;
    const E* const rows = static_cast<const E*>(p.d_final_history) + row_of_all * p.width() + unit.first_channel() +
                          tile_col(at.lane, 0, 0);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int j = i / 2, h = i % 2, row = first + 8 * h;
      if (row < 0 || row >= history || !unit.owns(8 * j)) continue;
      const float2 c = load2(rows + 8 * h * static_cast<int>(p.width()) + 8 * j);
      d_value.x[j][2 * h] += c.x, d_value.x[j][2 * h + 1] += c.y;
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
      for (int s = back; s <= history; ++s) {
        float d_c = 0.f;
#pragma unroll
        for (int part = 0; part < kGradientParts<E>; ++part)
          d_c += to_float(gradient_of_c(part, kTile + s - back, column));
        d += conv_weight(p, channel, kMaxHistory - s) * kSiluScale<E> * d_c;
      }
      const int64_t base = unit.segment.sequence * history;
      if (d_final_history && last >= 0) d += to_float(d_final_history[(base + last) * p.width() + channel]);
      static_cast<E*>(p.d_initial_history)[(base + history - back) * p.width() + channel] = from_float<E>(d);
    }
  }
};

}  // namespace recgrela::cuda::narrow
