// Thread block that processes some channels of a segment.
//
// A thread holds 8 states of a channel in registers; 1 to 32 adjacent lanes hold all states of the channel. All threads
// prepare the rows of a tile together, so that each step and gate is computed once and not by every lane: a thread
// computes the elements of one channel in some rows and stores them in shared memory, where the scan reads them.
#pragma once

#include "kernels/common/activations.cuh"
#include "kernels/selective_scan/plan.cuh"

namespace recgrela::cuda {

// Arrays of a tile of kRows rows in shared memory.
template <int kLanes, int kRows>
struct SelectiveTile {
  static constexpr int kStates = kLanes * kThreadStates;  // N rounded up; the padding is zero
  float *B, *C;                                           // [kRows, kStates]
  float *step, *delta_u, *grad;  // [kRows, channels]: d_i, d_i u_i, and the gradient of y before the gate

  // Number of floats of all arrays.
  static __host__ __device__ constexpr int size(int channels) { return kRows * (2 * kStates + 3 * channels); }
  __device__ SelectiveTile(float* shared, int channels) {
    B = shared, C = B + kRows * kStates;
    step = C + kRows * kStates, delta_u = step + kRows * channels, grad = delta_u + kRows * channels;
  }
};

// One thread of the block.
template <typename E, int kLanes>
struct SelectiveTeam {
  static constexpr int kStates = kLanes * kThreadStates;
  const SelectivePlan& p;
  int channels;       // of the block, including padding after the last channel
  int first_channel;  // of the block
  int row, column;    // elements that the thread prepares: rows row, row + kLanes, .. of channel `column` of the block

  __device__ SelectiveTeam(const SelectivePlan& p, int block_column) : p(p) {
    channels = p.block_channels;
    first_channel = block_column * channels;
    row = static_cast<int>(threadIdx.x) / channels, column = static_cast<int>(threadIdx.x) % channels;
  }

  // Lane and channel of the block that the thread scans.
  __device__ int lane() const { return static_cast<int>(threadIdx.x) % kLanes; }
  __device__ int channel() const { return static_cast<int>(threadIdx.x) / kLanes; }
  __device__ bool in_range() const { return first_channel + channel() < p.channels; }

  // Index of the thread's i-th state.
  __device__ int state(int i) const { return i / 4 * 4 * kLanes + lane() * 4 + i % 4; }
  // Loads the thread's states of matrix `index` of [.., C, N]; zeros beyond the last state, or if `matrices` is null.
  __device__ void load_states(const float* matrices, int64_t index, float (&out)[kThreadStates]) const {
    const float* const from = matrices + index * p.state_size() + int64_t{first_channel + channel()} * p.num_states;
#pragma unroll
    for (int i = 0; i < kThreadStates; ++i)
      out[i] = matrices && in_range() && state(i) < p.num_states ? from[state(i)] : 0.f;
  }
  __device__ void store_states(float* matrices, int64_t index, const float (&values)[kThreadStates]) const {
    float* const to = matrices + index * p.state_size() + int64_t{first_channel + channel()} * p.num_states;
#pragma unroll
    for (int i = 0; i < kThreadStates; ++i)
      if (in_range() && state(i) < p.num_states) to[state(i)] = values[i];
  }
  // Loads the thread's states of a row of a tile.
  __device__ void load_shared(const float* matrix, int tile_row, float (&out)[kThreadStates]) const {
#pragma unroll
    for (int i = 0; i < kThreadStates; i += 4) {
      const float4 quad = *reinterpret_cast<const float4*>(matrix + tile_row * kStates + state(i));
      out[i] = quad.x, out[i + 1] = quad.y, out[i + 2] = quad.z, out[i + 3] = quad.w;
    }
  }
  __device__ float lane_sum(float x) const {
#pragma unroll
    for (int offset = kLanes / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(0xffffffffu, x, offset);
    return x;
  }

  // Element of row i in the channel that the thread prepares.
  __device__ float load_element(const RowMatrix& rows, int64_t i) const {
    return to_float(static_cast<const E*>(rows.data)[i * rows.stride + first_channel + column]);
  }
  __device__ void store_element(const RowMatrix& rows, int64_t i, float x) const {
    static_cast<E*>(rows.data)[i * rows.stride + first_channel + column] = from_float<E>(x);
  }
  // Element of a vector [C]; 0 if it is absent.
  __device__ float load_channel(const float* vector) const { return vector ? vector[first_channel + column] : 0.f; }
  __device__ float load_step(int64_t i) const {
    const float x = load_element(p.delta, i) + load_channel(p.delta_bias);
    return p.delta_softplus ? softplus(x) : x;
  }
  // Gradient of y before the gate.
  __device__ float load_ungated_grad(int64_t i) const {
    float grad = load_element(p.d_y, i);
    if (p.z.data) {
      const float z = load_element(p.z, i);
      grad *= z * sigmoid(z);
    }
    return grad;
  }

  // Calls f(row of the tile, row of all, whether it is in range) for the elements that the thread prepares.
  template <int kRows, typename F>
  __device__ void for_each_element(int64_t tile_row0, int64_t end, F f) const {
    constexpr int kElements = kRows > kLanes ? kRows / kLanes : 1;
    const bool prepares = first_channel + column < p.channels;
#pragma unroll kRows> 4 ? kElements : 1
    for (int k = 0; k < kElements; ++k) {
      const int r = row + k * kLanes;
      if (kLanes <= kRows || r < kRows) f(r, tile_row0 + r, prepares && tile_row0 + r < end);
    }
  }

  // Loads rows of B or C to a tile; zeros beyond `end` and the last state.
  template <int kRows>
  __device__ void load_rows(const RowMatrix& rows, int64_t tile_row0, int64_t end, float* to) const {
    for (int i = threadIdx.x; i < kRows * kStates; i += p.threads) {
      const int64_t row_index = tile_row0 + i / kStates;
      const int n = i % kStates;
      to[i] = n < p.num_states && row_index < end
                  ? to_float(static_cast<const E*>(rows.data)[row_index * rows.stride + n])
                  : 0.f;
    }
  }
};

}  // namespace recgrela::cuda
