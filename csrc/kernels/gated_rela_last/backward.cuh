// Backward of gated_rela_last, from its inputs and the sums of the forward.
//
// With a = d_y SiLU(g), Z the denominator, o the attention's output, u = a / Z and d_Z = -(a . o) / Z, row j has
//   d_v_j = w_j u                                     + the convolution's part at the rows that it reads
//   d_phi(k_j) = (u . v_j) R_j^-1 R phi(q) + d_Z phi(q)
//   d_phi(q) = R^-1 sum_j (u . v_j) R_j phi(k_j) + d_Z sum_j phi(k_j)
// so one pass over the keys and values of a segment computes all gradients.
#pragma once

#include "kernels/gated_rela_last/thread.cuh"

namespace recgrela::cuda {

// Gradients at the wanted row of a sequence; zeros for an empty one.
template <typename E, int kHead>
struct RowGradient {
  using T = LastThread<E, kHead>;
  static constexpr int N = T::N;
  float keys[N];       // sum of phi(k)
  float attention[N];  // o
  float d_sum[N];      // a, the gradient of o plus the convolution
  float d_gate[N];     // gradient of g, divided by that sum
  float u[N];
  float d_denominator;  // d_Z

  // All lanes of a warp call it.
  __device__ RowGradient(const T& t, const WantedRow<E, kHead>& wanted) {
    const LastPlan& p = t.p;
#pragma unroll
    for (int i = 0; i < N; ++i) attention[i] = keys[i] = 0.f;
    if (wanted.valid) {
      const float* const sums = p.sums + wanted.sequence * 2 * p.width() + t.channel;
      load_floats(sums, attention);
      load_floats(sums + p.width(), keys);
    }
    const float inverse = wanted.inverse_denominator(t, keys);
    float gate[N];
    t.load(p.g, wanted.sequence, p.g.data && wanted.valid, gate);
    t.load(p.d_y, wanted.sequence, wanted.valid, d_sum);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      attention[i] *= inverse;
      if (p.g.data) {
        const float s = sigmoid(gate[i]);
        d_gate[i] = d_sum[i] * silu_grad(s, gate[i] * s);
        d_sum[i] *= gate[i] * s;
      }
      u[i] = d_sum[i] * inverse;
    }
    d_denominator = -t.head_sum(u, attention);
  }

  // Computes the gradient of the convolution before its SiLU. Stores d_g and the convolution's partial gradients if
  // `stores`.
  __device__ void convolve_back(const T& t, const WantedRow<E, kHead>& wanted, bool stores, float (&d_conv)[N]) {
    const LastPlan& p = t.p;
    float c[N];
    wanted.convolve(t, c);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const float s = sigmoid(c[i]);
      d_conv[i] = d_sum[i] * silu_grad(s, c[i] * s);
      if (p.g.data) d_gate[i] *= attention[i] + c[i] * s;
    }
    if (!stores) return;
    if (p.g.data) t.store(p.d_g, wanted.sequence, d_gate);
    if (p.kernel_size == 0) return;
    const int columns = p.kernel_size + 1;
    float* const out = p.conv_partials + (wanted.sequence * p.width() + t.channel) * columns;
    wanted.for_each_value(t, [&](int k, const float (&x)[N]) {
#pragma unroll
      for (int i = 0; i < N; ++i) out[i * columns + k] = d_conv[i] * x[i];
    });
#pragma unroll
    for (int i = 0; i < N; ++i) out[i * columns + p.kernel_size] = d_conv[i];
  }
};

// Stores d_q, from the gradient of R phi(q), [block channels] in shared memory. All lanes of a warp call it.
template <typename E, int kHead>
__device__ void store_query_gradient(const LastThread<E, kHead>& t, int64_t sequence, const float* d_rotated) {
  constexpr int N = LastThread<E, kHead>::N;
  const WantedRow<E, kHead> wanted(t, sequence);
  const RowGradient<E, kHead> gradient(t, wanted);
  if (t.slot > 0 || !t.active) return;
  float d[N];
  load_floats(d_rotated + t.block_channel, d);
  rotate_pairs_back(d, wanted.angles, d);
#pragma unroll
  for (int i = 0; i < N; ++i) d[i] = (d[i] + gradient.d_denominator * gradient.keys[i]) * phi_grad(wanted.plain[i]);
  t.store(t.p.d_q, sequence, d);
}

// Arrays of a block in shared memory, [block channels] each.
struct BackwardArrays {
  float *query, *u, *d_keys, *d_conv;  // R phi(q), u, d_Z phi(q), the gradient of the convolution before its SiLU
  float* parts;                        // [row_slots, block channels]: gradients of R phi(q)

  static constexpr int kArrays = 4;  // besides parts

  __device__ BackwardArrays(float* memory, int block_channels)
      : query(memory),
        u(query + block_channels),
        d_keys(u + block_channels),
        d_conv(d_keys + block_channels),
        parts(d_conv + block_channels) {}
};

// Rows from the end of a segment to the wanted row of its sequence; negative if the row comes before. Numbers that are
// too large for the convolution to reach are clamped.
inline __device__ int rows_to_wanted(const LastPlan& p, const Segment& s) {
  if (s.sequence_begin == s.sequence_end) return 0;
  const int64_t rows = wanted_row(p, s.sequence, {s.sequence_begin, s.sequence_end}) - s.end;
  constexpr int64_t kMin = -(int64_t{1} << 30) - 1;  // before every row of the segment
  return static_cast<int>(rows < kMin ? kMin : rows > p.kernel_size ? p.kernel_size : rows);
}

// Stores d_k and d_v of every row_slots-th row of a segment, and adds to the gradient of R phi(q).
template <typename E, int kHead>
__device__ void store_rows(const LastThread<E, kHead>& t, const Segment& s, const BackwardArrays& arrays,
                           float (&d_query)[LastThread<E, kHead>::N]) {
  constexpr int N = LastThread<E, kHead>::N;
  const LastPlan& p = t.p;
  const int rows = static_cast<int>(s.end - s.begin), step = p.row_slots;
  float u[N];
  load_floats(arrays.u + t.block_channel, u);
  const int64_t begin = s.begin + t.slot;
  RowPointer<E> k(t.address(p.k, begin), p.k), v(t.address(p.v, begin), p.v);
  RowPointer<E> d_k(t.address(p.d_k, begin), p.d_k), d_v(t.address(p.d_v, begin), p.d_v);
  AnglePointer angle(p, begin - s.sequence_begin, t.channel);
  const int end = rows_to_wanted(p, s);
  int left = t.active ? rows - t.slot : 0;  // rows from the current one to the end of the segment
  Packed<E, N> next_k = k.template load<N>(left > 0), next_v = v.template load<N>(left > 0);
  for (int first = 0; first < rows; first += step) {
    float x[N], y[N], angles[N], rotated[N];
    unpack(next_k, x);
    unpack(next_v, y);
    k.move(step), v.move(step);
    next_k = k.template load<N>(left > step), next_v = v.template load<N>(left > step);
    angle.load(left > 0, angles);
    angle.move(step);
    load_floats(arrays.query + t.block_channel, rotated);  // for each row, to save registers
    rotate_pairs_back(rotated, angles, rotated);
#pragma unroll
    for (int i = 0; i < N; ++i) x[i] = phi(x[i]);
    const float weight = t.head_sum(rotated, x), d_weight = t.head_sum(u, y);
    if (left > 0) {
      float d_keys[N];
      load_floats(arrays.d_keys + t.block_channel, d_keys);
#pragma unroll
      for (int i = 0; i < N; ++i) rotated[i] = (d_weight * rotated[i] + d_keys[i]) * phi_grad(x[i]);
      d_k.store(rotated);
      rotate_pairs(x, angles, x);
#pragma unroll
      for (int i = 0; i < N; ++i) d_query[i] += d_weight * x[i], y[i] = weight * u[i];
      const int back = left + end;  // rows from the current one to the wanted one
      if (back >= 0 && back < p.kernel_size) {
#pragma unroll
        for (int i = 0; i < N; ++i)
          y[i] += p.conv_weight[(t.channel + i + 1) * p.kernel_size - 1 - back] * arrays.d_conv[t.block_channel + i];
      }
      d_v.store(y);
    }
    d_k.move(step), d_v.move(step);
    left -= step;
  }
}

template <typename E, int kHead>
__global__ void __launch_bounds__(kLastThreads, kLastBackwardBlocks<E>) last_backward_kernel(const LastPlan p) {
  constexpr int N = LastThread<E, kHead>::N;
  const LastThread<E, kHead> t(p);
  const Segment segment = find_segment(p.segments, t.unit());
  if (!segment.exists()) return;
  const BackwardArrays arrays(reinterpret_cast<float*>(dynamic_shared()), p.block_channels());
  if (t.leads) {
    const WantedRow<E, kHead> wanted(t, segment.sequence);
    RowGradient<E, kHead> gradient(t, wanted);
    if (t.slot == 0) {
      float d_keys[N], d_conv[N] = {};
#pragma unroll
      for (int i = 0; i < N; ++i) d_keys[i] = gradient.d_denominator * wanted.plain[i];
      store_floats(arrays.query + t.block_channel, wanted.rotated);
      store_floats(arrays.u + t.block_channel, gradient.u);
      store_floats(arrays.d_keys + t.block_channel, d_keys);
      if (t.active) gradient.convolve_back(t, wanted, segment.is_first(), d_conv);
      store_floats(arrays.d_conv + t.block_channel, d_conv);
    }
  }
  __syncthreads();
  float d_query[N] = {};
  store_rows(t, segment, arrays, d_query);
  if (t.slot < p.row_slots) store_floats(arrays.parts + t.slot * p.block_channels() + t.block_channel, d_query);
  t.add_slots(arrays.parts, p.block_channels());
  if (!p.partials) {
    if (t.leads) store_query_gradient(t, segment.sequence, arrays.parts);
  } else if (t.slot == 0 && t.active) {
    load_floats(arrays.parts + t.block_channel, d_query);
    store_floats(p.partials + segment.slot * p.width() + t.channel, d_query);
  }
}

template <typename E, int kHead>
__global__ void __launch_bounds__(kLastThreads) last_combine_backward_kernel(const LastPlan p) {
  const LastThread<E, kHead> t(p);
  float* const d_rotated = reinterpret_cast<float*>(dynamic_shared());
  t.add_segments(p.partials, 1, t.unit(), d_rotated);
  if (t.leads) store_query_gradient(t, t.unit(), d_rotated);
}

template <typename E>
cudaError_t LastKernels<E>::backward(const LastPlan& p, cudaStream_t stream) {
  return dispatch_head_dim(p.head_dim, [&](auto head) {
    const size_t bytes = sizeof(float) * (BackwardArrays::kArrays + p.row_slots) * p.block_channels();
    return launch(last_backward_kernel<E, decltype(head)::value>, p.segments.num_slots * p.columns, kLastThreads, bytes,
                  stream, p);
  });
}
template <typename E>
cudaError_t LastKernels<E>::combine_backward(const LastPlan& p, cudaStream_t stream) {
  return dispatch_head_dim(p.head_dim, [&](auto head) {
    return launch(last_combine_backward_kernel<E, decltype(head)::value>, p.sequences.num_sequences * p.columns,
                  kLastThreads, sizeof(float) * p.block_channels(), stream, p);
  });
}

}  // namespace recgrela::cuda
