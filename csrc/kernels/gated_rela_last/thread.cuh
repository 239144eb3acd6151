// Channels and rows of a thread, and the parts that the forward and the backward share.
#pragma once

#include "kernels/common/activations.cuh"
#include "kernels/gated_rela_last/plan.cuh"

namespace recgrela::cuda {

// Rotates pairs of channels by angles (cos, sin).
template <int N>
__device__ void rotate_pairs(const float (&x)[N], const float (&angles)[N], float (&y)[N]) {
#pragma unroll
  for (int i = 0; i < N; i += 2) {
    const float cos = angles[i], sin = angles[i + 1], a = x[i], b = x[i + 1];
    y[i] = a * cos - b * sin, y[i + 1] = b * cos + a * sin;
  }
}
template <int N>
__device__ void rotate_pairs_back(const float (&x)[N], const float (&angles)[N], float (&y)[N]) {
#pragma unroll
  for (int i = 0; i < N; i += 2) {
    const float cos = angles[i], sin = angles[i + 1], a = x[i], b = x[i + 1];
    y[i] = a * cos + b * sin, y[i + 1] = b * cos - a * sin;
  }
}

template <int N>
__device__ void load_floats(const float* from, float (&out)[N]) {  // aligned to 16 bytes
#pragma unroll
  for (int i = 0; i < N; i += 4) {
    const float4 x = *reinterpret_cast<const float4*>(from + i);
    out[i] = x.x, out[i + 1] = x.y, out[i + 2] = x.z, out[i + 3] = x.w;
  }
}
template <int N>
__device__ void store_floats(float* to, const float (&values)[N]) {
#pragma unroll
  for (int i = 0; i < N; i += 4)
    *reinterpret_cast<float4*>(to + i) = make_float4(values[i], values[i + 1], values[i + 2], values[i + 3]);
}

// Address of some channels of a row.
template <typename E>
struct RowPointer {
  const E* at;
  int64_t stride;

  __device__ RowPointer(const E* at, const RowMatrix& rows) : at(at), stride(rows.stride) {}
  template <int N>
  __device__ Packed<E, N> load(bool valid) const {  // zeros unless valid
    if (!valid) return {};
    return *reinterpret_cast<const Packed<E, N>*>(at);
  }
  template <int N>
  __device__ void store(const float (&values)[N]) const {
    store_row(const_cast<E*>(at), N, true, values);
  }
  __device__ void move(int rows) { at += rows * stride; }
};

// Address of the angles (cos, sin) of some channels at a position.
struct AnglePointer {
  const float* at;  // null: no rotation
  int width;

  __device__ AnglePointer(const LastPlan& p, int64_t position, int channel)
      : at(p.rotary ? p.rotary + position * p.width() + channel : nullptr), width(p.width()) {}
  template <int N>
  __device__ void load(bool valid, float (&angles)[N]) const {  // angles of 0 unless valid
    if (at && valid) {
      load_floats(at, angles);
    } else {
#pragma unroll
      for (int i = 0; i < N; ++i) angles[i] = i % 2 ? 0.f : 1.f;
    }
  }
  __device__ void move(int rows) {
    if (at) at += rows * width;
  }
};

// Channels of a thread: N of one head, in the row slot `slot` of the block.
template <typename E, int kHead>
struct LastThread {
  static constexpr int N = 16 / sizeof(E), kLanes = kHead / N;
  const LastPlan& p;
  int slot;
  int block_channel;  // first channel, among those of the block
  int channel;        // among all
  bool active;        // the slot and the channels exist
  bool leads;         // a thread of the warp is in slot 0

  __device__ explicit LastThread(const LastPlan& p) : p(p) {
    const int row_threads = p.block_heads * kLanes, thread = static_cast<int>(threadIdx.x);
    slot = thread / row_threads;
    block_channel = thread % row_threads * N;
    channel = static_cast<int>(blockIdx.x % p.columns) * p.block_channels() + block_channel;
    active = slot < p.row_slots && channel < p.width();
    leads = thread / 32 * 32 < row_threads;
  }

  __device__ int64_t unit() const { return blockIdx.x / p.columns; }

  // Sum over the channels of the head. All lanes of a warp call it.
  __device__ float head_sum(const float (&a)[N], const float (&b)[N]) const {
    float sum = 0.f;
#pragma unroll
    for (int i = 0; i < N; ++i) sum += a[i] * b[i];
#pragma unroll
    for (int lanes = 1; lanes < kLanes; lanes *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, lanes);
    return sum;
  }

  __device__ const E* address(const RowMatrix& rows, int64_t row) const {
    return static_cast<const E*>(rows.data) + row * rows.stride + channel;
  }
  // Loads this thread's channels of a row, or zeros unless `valid`.
  __device__ void load(const RowMatrix& rows, int64_t row, bool valid, float (&out)[N]) const {
    Packed<E, N> packed = {};
    if (valid) packed = *reinterpret_cast<const Packed<E, N>*>(address(rows, row));  // the matrix may be absent
    unpack(packed, out);
  }
  __device__ void store(const RowMatrix& rows, int64_t row, const float (&values)[N]) const {
    store_row(const_cast<E*>(address(rows, row)), N, true, values);
  }

  // Adds the sums of all row slots in order. `parts` is [row_slots, size] in shared memory; its first row receives the
  // result. All threads of the block call it.
  __device__ void add_slots(float* parts, int size) const {
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < size; i += kLastThreads) {
      float sum = parts[i];
      for (int s = 1; s < p.row_slots; ++s) sum += parts[s * size + i];
      parts[i] = sum;
    }
    __syncthreads();
  }
  // Adds the sums over the segments of sequence b in order. `partials` is [slots, arrays, D]; `out`, in shared memory,
  // receives [arrays, block channels]. All threads of the block call it.
  __device__ void add_segments(const float* partials, int arrays, int64_t b, float* out) const {
    const int64_t count = count_segments(p.segments, sequence_rows(p.sequences, b));
    const int64_t row = int64_t{arrays} * p.width();
    partials += first_slot(p.segments, b) * row;
    const int block_channels = p.block_channels(), first_channel = channel - block_channel;
    for (int i = static_cast<int>(threadIdx.x); i < arrays * block_channels; i += kLastThreads) {
      const int c = first_channel + i % block_channels;
      const float* const from = partials + i / block_channels * p.width() + c;
      float sum = 0.f;
      if (c < p.width())
        for (int64_t s = 0; s < count; ++s) sum += from[s * row];
      out[i] = sum;
    }
    __syncthreads();
  }
};

// Index of the wanted row of a sequence that is not empty, clamped to the sequence.
inline __device__ int64_t wanted_row(const LastPlan& p, int64_t b, const RowRange& rows) {
  const int64_t row = p.wanted[b];
  return row < rows.begin ? rows.begin : row >= rows.end ? rows.end - 1 : row;
}

// Query of a sequence, and its wanted row.
template <typename E, int kHead>
struct WantedRow {
  using T = LastThread<E, kHead>;
  static constexpr int N = T::N;
  int64_t sequence;
  RowRange rows;
  int64_t row;
  bool valid;                             // the thread is active and the sequence is not empty
  float angles[N], plain[N], rotated[N];  // phi(q) and R phi(q); zeros unless valid

  __device__ WantedRow(const T& t, int64_t b) : sequence(b), rows(sequence_rows(t.p.sequences, b)) {
    valid = t.active && rows.end > rows.begin;
    row = valid ? wanted_row(t.p, b, rows) : rows.begin;
    AnglePointer(t.p, row - rows.begin, t.channel).load(valid, angles);
    t.load(t.p.q, b, valid, plain);
#pragma unroll
    for (int i = 0; i < N; ++i) plain[i] = valid ? phi(plain[i]) : 0.f;
    rotate_pairs(plain, angles, rotated);
  }

  // 1 / the denominator, from the sums of phi(k); zero for an empty sequence. All lanes of a warp call it.
  __device__ float inverse_denominator(const T& t, const float (&keys)[N]) const {
    const float denominator = t.head_sum(plain, keys) + t.p.eps * static_cast<float>(rows.end - rows.begin);
    return valid ? fast_reciprocal(denominator) : 0.f;
  }

  // Calls f(k, x) for the rows of v that the convolution multiplies by weight k.
  template <typename F>
  __device__ void for_each_value(const T& t, F f) const {
    for (int k = 0; k < t.p.kernel_size; ++k) {
      const int64_t source = row - (t.p.kernel_size - 1) + k;
      float x[N];
      t.load(t.p.v, source, valid && source >= rows.begin, x);
      f(k, x);
    }
  }
  // The convolution at the row, before its SiLU.
  __device__ void convolve(const T& t, float (&c)[N]) const {
#pragma unroll
    for (int i = 0; i < N; ++i) c[i] = valid && t.p.kernel_size > 0 ? t.p.conv_bias[t.channel + i] : 0.f;
    if (!valid) return;
    for_each_value(t, [&](int k, const float (&x)[N]) {
#pragma unroll
      for (int i = 0; i < N; ++i) c[i] += t.p.conv_weight[(t.channel + i) * t.p.kernel_size + k] * x[i];
    });
  }
};

}  // namespace recgrela::cuda
