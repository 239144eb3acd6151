// Forward of gated_rela_last. With one query a sequence, its weights w_j = (R phi(q)) . (R_j phi(k_j)) are dot
// products, and no state of keys by values is needed:
//   y = (sum_j w_j v_j / (phi(q) . sum_j phi(k_j) + n eps) + SiLU(conv(v))) SiLU(g)
// A block goes through the keys and values of a segment once. The query is rotated back by each position instead of
// rotating the key.
#pragma once

#include "kernels/gated_rela_last/thread.cuh"

namespace recgrela::cuda {

// Adds w_j v_j and phi(k_j) of every row_slots-th row of a segment.
template <typename E, int kHead>
__device__ void add_rows(const LastThread<E, kHead>& t, const Segment& s, const float (&query)[LastThread<E, kHead>::N],
                         float (&values)[LastThread<E, kHead>::N], float (&keys)[LastThread<E, kHead>::N]) {
  constexpr int N = LastThread<E, kHead>::N, kAhead = 2;
  const LastPlan& p = t.p;
  const int rows = static_cast<int>(s.end - s.begin), step = p.row_slots;
  RowPointer<E> k(t.address(p.k, s.begin + t.slot), p.k), v(t.address(p.v, s.begin + t.slot), p.v);
  AnglePointer angle(p, s.begin - s.sequence_begin + t.slot, t.channel);
  int left = t.active ? rows - t.slot : 0;  // rows from the current one on
  for (int first = 0; first < rows; first += kAhead * step) {
    Packed<E, N> k_ahead[kAhead], v_ahead[kAhead];
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
      k_ahead[a] = k.template load<N>(left > a * step);
      v_ahead[a] = v.template load<N>(left > a * step);
      k.move(step), v.move(step);
    }
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
      float x[N], angles[N], rotated[N];
      angle.load(left > 0, angles);
      angle.move(step);
      rotate_pairs_back(query, angles, rotated);
      unpack(k_ahead[a], x);
#pragma unroll
      for (int i = 0; i < N; ++i) x[i] = phi(x[i]);
      const float weight = t.head_sum(rotated, x);
      if (left > 0) {
#pragma unroll
        for (int i = 0; i < N; ++i) keys[i] += x[i];
        unpack(v_ahead[a], x);
#pragma unroll
        for (int i = 0; i < N; ++i) values[i] += weight * x[i];
      }
      left -= step;
    }
  }
}

// Stores the wanted row and its sums, from the sums [2, block channels] in shared memory.
template <typename E, int kHead>
__device__ void store_wanted_row(const LastThread<E, kHead>& t, int64_t sequence, const float* sums) {
  constexpr int N = LastThread<E, kHead>::N;
  const LastPlan& p = t.p;
  if (!t.leads) return;
  const WantedRow<E, kHead> wanted(t, sequence);
  float values[N], keys[N], c[N], gate[N], y[N];
  load_floats(sums + t.block_channel, values);
  load_floats(sums + p.block_channels() + t.block_channel, keys);
  const float inverse = wanted.inverse_denominator(t, keys);
  if (t.slot > 0 || !t.active) return;
  wanted.convolve(t, c);
  t.load(p.g, sequence, p.g.data && wanted.valid, gate);
#pragma unroll
  for (int i = 0; i < N; ++i) {
    y[i] = values[i] * inverse + c[i] * sigmoid(c[i]);
    if (p.g.data) y[i] *= gate[i] * sigmoid(gate[i]);
  }
  t.store(p.y, sequence, y);
  float* const out = p.sums + sequence * 2 * p.width() + t.channel;
  store_floats(out, values);
  store_floats(out + p.width(), keys);
}

template <typename E, int kHead>
__global__ void __launch_bounds__(kLastThreads, kLastForwardBlocks<E>) last_forward_kernel(const LastPlan p) {
  constexpr int N = LastThread<E, kHead>::N;
  check_sequences(p.sequences, nullptr, p.rotary ? p.rotary_positions : 0);
  const LastThread<E, kHead> t(p);
  const Segment segment = find_segment(p.segments, t.unit());
  if (!segment.exists()) return;
  if (p.rotary && segment.sequence_end - segment.sequence_begin > p.rotary_positions) return;  // the check refuses it
  float* const parts = reinterpret_cast<float*>(dynamic_shared());  // [row_slots, 2, block channels]
  const int block_channels = p.block_channels();
  float values[N] = {}, keys[N] = {};
  add_rows(t, segment, WantedRow<E, kHead>(t, segment.sequence).rotated, values, keys);
  if (t.slot < p.row_slots) {
    float* const own = parts + t.slot * 2 * block_channels + t.block_channel;
    store_floats(own, values);
    store_floats(own + block_channels, keys);
  }
  t.add_slots(parts, 2 * block_channels);
  if (!p.partials) {
    store_wanted_row(t, segment.sequence, parts);
  } else if (t.slot == 0 && t.active) {
    float* const out = p.partials + segment.slot * 2 * p.width() + t.channel;
    load_floats(parts + t.block_channel, values);
    load_floats(parts + block_channels + t.block_channel, keys);
    store_floats(out, values);
    store_floats(out + p.width(), keys);
  }
}

template <typename E, int kHead>
__global__ void __launch_bounds__(kLastThreads) last_combine_forward_kernel(const LastPlan p) {
  const LastThread<E, kHead> t(p);
  float* const sums = reinterpret_cast<float*>(dynamic_shared());
  t.add_segments(p.partials, 2, t.unit(), sums);
  store_wanted_row(t, t.unit(), sums);
}

template <typename E>
cudaError_t LastKernels<E>::forward(const LastPlan& p, cudaStream_t stream) {
  return dispatch_head_dim(p.head_dim, [&](auto head) {
    const size_t bytes = sizeof(float) * 2 * p.row_slots * p.block_channels();
    return launch(last_forward_kernel<E, decltype(head)::value>, p.segments.num_slots * p.columns, kLastThreads, bytes,
                  stream, p);
  });
}
template <typename E>
cudaError_t LastKernels<E>::combine_forward(const LastPlan& p, cudaStream_t stream) {
  return dispatch_head_dim(p.head_dim, [&](auto head) {
    const size_t bytes = sizeof(float) * 2 * p.block_channels();
    return launch(last_combine_forward_kernel<E, decltype(head)::value>, p.sequences.num_sequences * p.columns,
                  kLastThreads, bytes, stream, p);
  });
}

}  // namespace recgrela::cuda
