// A call of selective_scan as the host plans it, and the block of threads that takes some channels of a segment.
//
// A thread holds 8 states of a channel in registers, and 1 to 32 neighbouring lanes all states of it. The rows of a
// tile are prepared together: each thread takes elements of some rows of one channel, so that steps and gates are
// found once and not by every lane, and leaves what the scan reads in shared memory.
#pragma once

#include <type_traits>

#include "kernels/common/segments.cuh"
#include "kernels/selective_scan/params.h"

namespace recgrela::cuda {

constexpr int kThreadStates = 8;
constexpr int kForwardThreads = 256;  // of a block, at most
constexpr int kBackwardThreads = 128;
constexpr float kLog2E = 1.44269504f, kLn2 = 0.693147181f;

// A call's parameters and what the host makes of them.
struct SelectivePlan : SelectiveScanParams {
  SegmentPlan segments;
  int threads = 0, block_channels = 0;  // of a block
  int columns = 0;                      // blocks side by side that cover the channels
  float* segment_states = nullptr;      // [slots, C, N]: what a segment comes to from zero, then what it begins from
  float* segment_steps = nullptr;       // [slots, C]: the sums of the steps

  // The backward's blocks one below the other, each of which takes every so many-th slot: so many parts of dA, dD and
  // the bias's gradient there are.
  int64_t persistent_blocks = 0;
  float *A_parts = nullptr, *D_parts = nullptr,
        *bias_parts = nullptr;  // [persistent_blocks, C, N], [persistent_blocks, C]
  // The columns' parts of dB and dC. As many columns run in a launch as take the room of about four float32 matrices
  // of the rows of u; what launches before have found is in row_sums. Neither where there is one column.
  int launch_columns = 0, first_column = 0;
  float* row_parts = nullptr;  // [launch_columns, T, 2 N]
  float* row_sums = nullptr;   // [T, 2 N]

  __host__ __device__ int64_t state_size() const { return channels * num_states; }
};

inline __device__ float sigmoid(float x) { return fast_reciprocal(1.f + fast_exp2(x * -kLog2E)); }

inline __device__ float softplus(float x) { return x > 20.f ? x : log1pf(expf(x)); }

// The arrays of a tile of kRows rows in shared memory.
template <int kLanes, int kRows>
struct SelectiveTile {
  static constexpr int kStates = kLanes * kThreadStates;  // N, rounded up; zeros in between
  float *B, *C;                                           // [kRows, kStates]
  float *step, *delta_u, *grad;                           // [kRows, channels]: d, d u, and y's gradient times the gate

  // The floats that the arrays take.
  static __host__ __device__ constexpr int size(int channels) { return kRows * (2 * kStates + 3 * channels); }
  __device__ SelectiveTile(float* shared, int channels) {
    B = shared, C = B + kRows * kStates;
    step = C + kRows * kStates, delta_u = step + kRows * channels, grad = delta_u + kRows * channels;
  }
};

// One thread of a block.
template <typename E, int kLanes>
struct SelectiveTeam {
  static constexpr int kStates = kLanes * kThreadStates;
  const SelectivePlan& p;
  int channels;       // of the block, whether they are there or not
  int first_channel;  // the block's
  int row, column;    // as one who prepares: rows row, row + kLanes .. of a channel

  __device__ SelectiveTeam(const SelectivePlan& p, int block_column) : p(p) {
    channels = p.block_channels;
    first_channel = block_column * channels;
    row = static_cast<int>(threadIdx.x) / channels, column = static_cast<int>(threadIdx.x) % channels;
  }

  // As part of the scan: which lane of which channel.
  __device__ int lane() const { return static_cast<int>(threadIdx.x) % kLanes; }
  __device__ int channel() const { return static_cast<int>(threadIdx.x) / kLanes; }
  __device__ bool there() const { return first_channel + channel() < p.channels; }

  // Which state is the i-th of this thread.
  __device__ int state(int i) const { return i / 4 * 4 * kLanes + lane() * 4 + i % 4; }
  // This thread's states of matrix `number` of those of [C, N]; zeros where there are none.
  __device__ void load_states(const float* matrices, int64_t number, float (&out)[kThreadStates]) const {
    const float* const from = matrices + number * p.state_size() + int64_t{first_channel + channel()} * p.num_states;
#pragma unroll
    for (int i = 0; i < kThreadStates; ++i)
      out[i] = matrices && there() && state(i) < p.num_states ? from[state(i)] : 0.f;
  }
  __device__ void store_states(float* matrices, int64_t number, const float (&values)[kThreadStates]) const {
    float* const to = matrices + number * p.state_size() + int64_t{first_channel + channel()} * p.num_states;
#pragma unroll
    for (int i = 0; i < kThreadStates; ++i)
      if (there() && state(i) < p.num_states) to[state(i)] = values[i];
  }
  // This thread's share of a row of a tile.
  __device__ void load_shared(const float* matrix, int tile_row, float (&out)[kThreadStates]) const {
#pragma unroll
    for (int i = 0; i < kThreadStates; i += 4) {
      const float4 quad = *reinterpret_cast<const float4*>(matrix + tile_row * kStates + state(i));
      out[i] = quad.x, out[i + 1] = quad.y, out[i + 2] = quad.z, out[i + 3] = quad.w;
    }
  }
  __device__ float sum_of_lanes(float x) const {
#pragma unroll
    for (int offset = kLanes / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(0xffffffffu, x, offset);
    return x;
  }

  __device__ float element(const RowMatrix& rows, int64_t at) const {
    return to_float(static_cast<const E*>(rows.data)[at * rows.stride + first_channel + column]);
  }
  __device__ void put_element(const RowMatrix& rows, int64_t at, float x) const {
    static_cast<E*>(rows.data)[at * rows.stride + first_channel + column] = from_float<E>(x);
  }
  // Of a vector of the channels, which may be absent.
  __device__ float of_channel(const float* vector) const { return vector ? vector[first_channel + column] : 0.f; }
  __device__ float step_at(int64_t at) const {
    const float x = element(p.delta, at) + of_channel(p.delta_bias);
    return p.delta_softplus ? softplus(x) : x;
  }
  // y's gradient before the gate.
  __device__ float gated_grad(int64_t at) const {
    float grad = element(p.d_y, at);
    if (p.z.data) {
      const float z = element(p.z, at);
      grad *= z * sigmoid(z);
    }
    return grad;
  }

  // f(row of the tile, row of all, whether it is there) for the elements that this thread prepares.
  template <int kRows, typename F>
  __device__ void each_element(int64_t tile_row0, int64_t end, F f) const {
    constexpr int kElements = kRows > kLanes ? kRows / kLanes : 1;
    const bool prepares = first_channel + column < p.channels;
#pragma unroll kRows> 4 ? kElements : 1
    for (int k = 0; k < kElements; ++k) {
      const int r = row + k * kLanes;
      if (kLanes <= kRows || r < kRows) f(r, tile_row0 + r, prepares && tile_row0 + r < end);
    }
  }

  // Rows of B or C into a tile, zeros where there are none.
  template <int kRows>
  __device__ void load_rows(const RowMatrix& rows, int64_t tile_row0, int64_t end, float* to) const {
    for (int i = threadIdx.x; i < kRows * kStates; i += p.threads) {
      const int64_t at = tile_row0 + i / kStates;
      const int n = i % kStates;
      to[i] = n < p.num_states && at < end ? to_float(static_cast<const E*>(rows.data)[at * rows.stride + n]) : 0.f;
    }
  }
};

// Calls f(a count of lanes as a constant) with the fewest that hold so many states.
template <typename F>
cudaError_t with_lanes(int states, F&& f) {
  if (states <= 8) return f(std::integral_constant<int, 1>{});
  if (states <= 16) return f(std::integral_constant<int, 2>{});
  if (states <= 32) return f(std::integral_constant<int, 4>{});
  if (states <= 64) return f(std::integral_constant<int, 8>{});
  if (states <= 128) return f(std::integral_constant<int, 16>{});
  return f(std::integral_constant<int, 32>{});
}

// The kernels of one element type, for as many states as the plan has.
template <typename E>
struct SelectiveKernels {
  // What each segment but the last one in order comes to from zero.
  static cudaError_t sum_segments(const SelectivePlan& plan, bool reverse, cudaStream_t stream);
  static cudaError_t forward(const SelectivePlan& plan, cudaStream_t stream);
  // Of the columns of a launch.
  static cudaError_t backward(const SelectivePlan& plan, cudaStream_t stream);
  // Adds their parts of dB and dC.
  static cudaError_t add_rows(const SelectivePlan& plan, cudaStream_t stream);
};

}  // namespace recgrela::cuda
