// One warp of selective_scan's backward: its channels of a tile of 4 rows.
//
// In the scan, lane l has the states 4 g .. 4 g + 3 of a few channels, where g = l / kGroups: decays, states and their
// gradients stay in registers, and a row of B and C is read once for all channels of a thread. Sums over channels (the
// gradients of B and C) and over states (of u, delta and z) leave a thread as partial sums in shared memory, which are
// added for all rows of a tile at once. Elements of [T, C] are divided among the lanes in another way: lane l has row
// l / 8 of the tile and adjacent channels; it computes the step and the gate of an element once, for all states.
#pragma once

#include "kernels/common/activations.cuh"
#include "kernels/selective_scan/backward_shape.cuh"
#include "kernels/selective_scan/plan.cuh"

namespace recgrela::cuda {

// Adjacent elements of a row, as in memory.
template <typename E, int kCount>
struct alignas(kCount * sizeof(E) < 16 ? kCount * sizeof(E) : 16) Adjacent {
  E x[kCount];
};

// Loads kCount adjacent floats, 4 at a time if there are as many, which must be aligned to their size.
template <int kCount>
__device__ void load_floats(const float* from, float (&out)[kCount]) {
  if constexpr (kCount == 1) {
    out[0] = *from;
  } else if constexpr (kCount == 2) {
    const float2 pair = *reinterpret_cast<const float2*>(from);
    out[0] = pair.x, out[1] = pair.y;
  } else {
#pragma unroll
    for (int i = 0; i < kCount; i += 4) {
      const float4 quad = *reinterpret_cast<const float4*>(from + i);
      out[i] = quad.x, out[i + 1] = quad.y, out[i + 2] = quad.z, out[i + 3] = quad.w;
    }
  }
}
template <int kCount>
__device__ void store_floats(float* to, const float (&values)[kCount]) {
  if constexpr (kCount == 1) {
    *to = values[0];
  } else if constexpr (kCount == 2) {
    *reinterpret_cast<float2*>(to) = make_float2(values[0], values[1]);
  } else {
#pragma unroll
    for (int i = 0; i < kCount; i += 4)
      *reinterpret_cast<float4*>(to + i) = make_float4(values[i], values[i + 1], values[i + 2], values[i + 3]);
  }
}

template <typename E, typename Shape>
struct BackwardWarp {
  static constexpr int kGroups = Shape::kGroups, kChannels = Shape::kChannels, kStates = Shape::kStates;
  static constexpr int kLanes = Shape::kLanes, kElements = Shape::kElements, kQuads = Shape::kQuads;
  static constexpr int kWarpChannels = Shape::kWarpChannels, kAllStates = Shape::kAllStates;
  using States = float[kChannels][kStates];
  // The thread's elements of a tile, as loaded.
  struct Rows {
    Adjacent<E, kElements> u, delta, z, d_y;
  };

  const SelectivePlan& p;
  float* const stage;                            // [2, kStageRows, kAllStates]: B and C
  float *by_state, *states_before, *by_channel;  // of the warp
  float *sums, *step, *delta_u, *grad, *u;
  float* d_A;                      // the thread's quads of the gradient of A
  float *D, *bias, *d_D, *d_bias;  // [kWarpChannels], and the sums of the thread's elements
  const int lane, first_channel;   // of the warp
  const int element_row;           // of the tile
  const int element;               // first of the thread's elements, among the channels of the warp
  const int element_offset;        // of the thread's elements in a tile [kTileRows, kWarpChannels]
  const int valid_elements;        // elements that exist
  const bool whole;                // all channels of the block exist, and rows are aligned
  int64_t begin = 0;               // first row of the segment; other rows are counted from it
  int end = 0;                     // rows of the segment
  States a;                        // A log2(e)

  __device__ BackwardWarp(const SelectivePlan& p, int column)
      : p(p),
        stage(reinterpret_cast<float*>(dynamic_shared())),
        lane(threadIdx.x % 32),
        first_channel(column * p.backward_channels + static_cast<int>(threadIdx.x / 32) * kWarpChannels),
        element_row(lane / 8),
        element(lane % 8 / Shape::kParts * kElements),
        element_offset(Shape::kParts == 1 ? lane * kElements : element_row * kWarpChannels + element),
        valid_elements(
            static_cast<int>(max(int64_t{0}, min(int64_t{kElements}, p.channels - first_channel - element)))),
        whole(p.rows_aligned && int64_t{column + 1} * p.backward_channels <= p.channels) {
    by_state = stage + Shape::kStageSize + threadIdx.x / 32 * Shape::kWarpSize;
    states_before = by_state + Shape::kByStateSize;
    by_channel = states_before + Shape::kStatesSize;
    sums = by_channel + 2 * Shape::kByChannelSize;
    step = by_channel + 2 * Shape::kByChannelSize + Shape::kSumsSize;
    delta_u = step + Shape::kElementsSize, grad = delta_u + Shape::kElementsSize;
    u = grad + Shape::kElementsSize;
    D = step + (4 * Shape::kElementsSize + 31) / 32 * 32, bias = D + kWarpChannels;
    d_D = D + Shape::kVectorsSize + lane * kElements, d_bias = d_D + 32 * kElements;
    d_A = D + Shape::kVectorsSize + Shape::kTotalsSize + lane * 4;
    keep_state(d_A, States{});
    load_states(p.A, 0, a);
#pragma unroll
    for (int c = 0; c < kChannels; ++c)
#pragma unroll
      for (int s = 0; s < kStates; ++s) a[c][s] *= kLog2E;
    for (int i = lane; i < kWarpChannels; i += 32) {
      const bool exists = first_channel + i < p.channels;
      D[i] = exists && p.D ? p.D[first_channel + i] : 0.f;
      bias[i] = exists && p.delta_bias ? p.delta_bias[first_channel + i] : 0.f;
    }
#pragma unroll
    for (int k = 0; k < kElements; ++k) d_D[k] = d_bias[k] = 0.f;
    __syncwarp();
  }

  // Calls f(c, s, index in a matrix [C, N]) for the thread's states that exist.
  template <typename F>
  __device__ void for_each_state(F f) const {
    const int thread = computed_here(lane), channel = first_channel + thread % kGroups * kChannels;
#pragma unroll
    for (int c = 0; c < kChannels; ++c)
#pragma unroll
      for (int s = 0; s < kStates; ++s) {
        const int n = s / 4 * 4 * kLanes + thread / kGroups * 4 + s % 4;
        if (channel + c < p.channels && n < p.num_states) f(c, s, int64_t{channel + c} * p.num_states + n);
      }
  }
  // Loads the thread's states of matrix `index` of [.., C, N]; zeros if `matrices` is null.
  __device__ void load_states(const float* matrices, int64_t index, States& out) const {
#pragma unroll
    for (int c = 0; c < kChannels; ++c)
#pragma unroll
      for (int s = 0; s < kStates; ++s) out[c][s] = 0.f;
    if (!matrices) return;
    if (p.num_states == kAllStates && reinterpret_cast<uintptr_t>(matrices) % 16 == 0) {
      const int thread = computed_here(lane), channel = first_channel + thread % kGroups * kChannels;
      const float* const from =
          matrices + index * p.state_size() + int64_t{channel} * kAllStates + thread / kGroups * 4;
#pragma unroll
      for (int c = 0; c < kChannels; ++c)
#pragma unroll
        for (int s = 0; s < kStates; s += 4) {
          float quad[4] = {};
          if (channel + c < p.channels) load_floats<4>(from + c * kAllStates + s * kLanes, quad);
#pragma unroll
          for (int i = 0; i < 4; ++i) out[c][s + i] = quad[i];
        }
    } else {
      for_each_state([&](int c, int s, int64_t i) { out[c][s] = matrices[index * p.state_size() + i]; });
    }
  }
  __device__ void store_states(float* matrices, int64_t index, const States& values) const {
    for_each_state([&](int c, int s, int64_t i) { matrices[index * p.state_size() + i] = values[c][s]; });
  }
  // The thread's states before tile t of the chunk, 1 <= t < kTiles - 1.
  __device__ float* state_before(int t) const { return states_before + (t - 1) * 32 * kChannels * kStates + lane * 4; }
  // Keeps states in shared memory: quads of all threads one after the other.
  static __device__ void keep_state(float* to, const States& state) {
#pragma unroll
    for (int c = 0; c < kChannels; ++c)
#pragma unroll
      for (int s = 0; s < kStates; s += 4)
        store_floats<4>(to + (c * kStates + s) * 32, {state[c][s], state[c][s + 1], state[c][s + 2], state[c][s + 3]});
  }
  static __device__ void load_kept_state(const float* from, States& state) {
#pragma unroll
    for (int c = 0; c < kChannels; ++c)
#pragma unroll
      for (int s = 0; s < kStates; s += 4) {
        float quad[4];
        load_floats<4>(from + (c * kStates + s) * 32, quad);
#pragma unroll
        for (int i = 0; i < 4; ++i) state[c][s + i] = quad[i];
      }
  }

  // Thread's elements of a row of the segment.
  __device__ E* elements_of(const RowMatrix& rows, int64_t row) const {
    return static_cast<E*>(rows.data) + row * rows.stride + computed_here(first_channel + element);
  }
  __device__ void load_some(const RowMatrix& rows, int64_t row, Adjacent<E, kElements>& out) const {
    const E* const from = elements_of(rows, row);
#pragma unroll
    for (int k = 0; k < kElements; ++k) out.x[k] = k < valid_elements ? from[k] : from_float<E>(0.f);
  }
  __device__ void load_whole(const RowMatrix& rows, int64_t row, Adjacent<E, kElements>& out) const {
    out = *reinterpret_cast<const Adjacent<E, kElements>*>(elements_of(rows, row));
  }
  __device__ void store_elements(const RowMatrix& rows, int row, const float (&values)[kElements]) const {
    E* const to = elements_of(rows, begin + row);
    if (whole) {
      Adjacent<E, kElements> all;
#pragma unroll
      for (int k = 0; k < kElements; ++k) all.x[k] = from_float<E>(values[k]);
      *reinterpret_cast<Adjacent<E, kElements>*>(to) = all;
    } else {
#pragma unroll
      for (int k = 0; k < kElements; ++k)
        if (k < valid_elements) to[k] = from_float<E>(values[k]);
    }
  }
  // Loads the thread's elements of a tile; those of rows from `end` on are those of the last row.
  template <bool kGradients>
  __device__ void load_rows(int row0, Rows& rows) const {
    const int64_t row = begin + min(row0 + element_row, end - 1);
    const RowMatrix& z = p.z.data ? p.z : p.d_y;  // a condition on each load takes more registers
    if (whole) {
      load_whole(p.u, row, rows.u), load_whole(p.delta, row, rows.delta);
      if constexpr (kGradients) load_whole(p.d_y, row, rows.d_y), load_whole(z, row, rows.z);
    } else {
      load_some(p.u, row, rows.u), load_some(p.delta, row, rows.delta);
      if constexpr (kGradients) load_some(p.d_y, row, rows.d_y), load_some(z, row, rows.z);
    }
  }

  // Whether the thread's elements of a row exist; threads that repeat others' elements do not store them.
  __device__ bool stores_row(int row) const { return row < end && lane % Shape::kParts == 0; }

  // What an element's gradients need after the scan.
  struct Element {
    float slope[kElements], d_z[kElements];  // derivative of the step by delta, and gradient of z but for the factor y
  };

  // Computes steps and gates of a tile and stores them in shared memory for the scan. Rows from `end` on and channels
  // that do not exist leave states and gradients as they are.
  template <bool kGradients>
  __device__ void prepare(const Rows& rows, int row0, Element& out) const {
    float steps[kElements], delta_us[kElements], grads[kElements], us[kElements], biases[kElements];
    load_floats<kElements>(bias + element, biases);
#pragma unroll
    for (int k = 0; k < kElements; ++k) {
      us[k] = to_float(rows.u.x[k]), steps[k] = to_float(rows.delta.x[k]) + biases[k];
      if constexpr (kGradients) grads[k] = to_float(rows.d_y.x[k]), out.slope[k] = 1.f, out.d_z[k] = 0.f;
    }
    if (p.delta_softplus) {
#pragma unroll
      for (int k = 0; k < kElements; ++k) {
        if constexpr (kGradients) out.slope[k] = sigmoid(steps[k]);
        steps[k] = softplus(steps[k]);
      }
    }
    if (kGradients && p.z.data) {
#pragma unroll
      for (int k = 0; k < kElements; ++k) {
        const float z = to_float(rows.z.x[k]), s = sigmoid(z), gate = z * s;
        out.d_z[k] = grads[k] * silu_grad(s, gate);
        grads[k] *= gate;
      }
    }
#pragma unroll
    for (int k = 0; k < kElements; ++k) delta_us[k] = steps[k] * us[k];
    if (!whole || row0 + kTileRows > end) {
#pragma unroll
      for (int k = 0; k < kElements; ++k)
        if (k >= valid_elements || row0 + element_row >= end) {
          steps[k] = delta_us[k] = 0.f;
          if constexpr (kGradients) grads[k] = 0.f;
        }
    }
    __syncwarp();
    if (lane % Shape::kParts == 0) {
      const int i = element_offset;
      store_floats<kElements>(step + i, steps);
      store_floats<kElements>(delta_u + i, delta_us);
      if constexpr (kGradients) store_floats<kElements>(grad + i, grads), store_floats<kElements>(u + i, us);
    }
    __syncwarp();
  }

  // The thread's states of row r of B or of C in the stage.
  __device__ void load_staged(const float* row, float (&out)[kStates]) const {
#pragma unroll
    for (int s = 0; s < kStates; s += 4) {
      float quad[4];
      load_floats<4>(row + s * kLanes + lane / kGroups * 4, quad);
#pragma unroll
      for (int i = 0; i < 4; ++i) out[s + i] = quad[i];
    }
  }
  // Numbers of the thread's channels of a row of step, delta_u or grad.
  __device__ void load_scanned(const float* elements, int r, float (&out)[kChannels]) const {
    load_floats<kChannels>(elements + r * kWarpChannels + lane % kGroups * kChannels, out);
  }

  // Advances the state over a tile whose rows of B begin at `B`.
  __device__ void advance(const float* B, States& state) const {
#pragma unroll
    for (int r = 0; r < kTileRows; ++r) {
      float steps[kChannels], delta_us[kChannels], b[kStates];
      load_scanned(step, r, steps), load_scanned(delta_u, r, delta_us);
      load_staged(B + r * kAllStates, b);
#pragma unroll
      for (int c = 0; c < kChannels; ++c)
#pragma unroll
        for (int s = 0; s < kStates; ++s)
          state[c][s] = fast_exp2(steps[c] * a[c][s]) * state[c][s] + delta_us[c] * b[s];
    }
  }

  // Stores a thread's share of the gradients of row r of B (kind 0) or C (kind 1), or all of them if kGroups is 1.
  __device__ void put_by_state(int r, int sum_row, int kind, const float (&values)[kStates]) const {
    float* const to =
        kGroups > 1 ? by_state + r * kGroups * kAllStates : sums + ((sum_row + r) * 2 + kind) * kAllStates;
#pragma unroll
    for (int s = 0; s < kStates; s += 4)
      store_floats<4>(to + (s / 4 * 32 + lane) * 4, {values[s], values[s + 1], values[s + 2], values[s + 3]});
  }
  // Stores a thread's share of the sums over the states of row r; they have kind 0 or 1.
  __device__ void put_by_channel(int r, int kind, const float (&values)[kChannels]) const {
    store_floats<kChannels>(by_channel + kind * Shape::kByChannelSize + (r * 32 + lane) * kChannels, values);
  }
  // Sums over the states of the thread's elements.
  __device__ void sum_by_channel(int kind, float (&out)[kElements]) const {
    constexpr int kShare = kLanes / Shape::kParts;
    const int part = lane % Shape::kParts;
    const float* const from =
        by_channel + kind * Shape::kByChannelSize + (element_row * kLanes + part * kShare) * kWarpChannels + element;
#pragma unroll
    for (int g = 0; g < kShare; ++g) {
      float values[kElements];
      load_floats<kElements>(from + g * kWarpChannels, values);
#pragma unroll
      for (int k = 0; k < kElements; ++k) out[k] = g == 0 ? values[k] : out[k] + values[k];
    }
#pragma unroll
    for (int offset = Shape::kParts / 2; offset > 0; offset /= 2)
#pragma unroll
      for (int k = 0; k < kElements; ++k) out[k] += __shfl_xor_sync(0xffffffffu, out[k], offset);
  }
  // Adds the gradients of B (kind 0) or C (kind 1) of a tile over the groups of channels, and stores them from row
  // `sum_row` of `sums` on. A lane adds 2 states, or 4; lanes begin at different groups, and so at different banks.
  __device__ void sum_by_state(int sum_row, int kind) const {
    if constexpr (kGroups > 1) {
      const int by_state_offset = 4 * (Shape::kStageSize + static_cast<int>(threadIdx.x) / 32 * Shape::kWarpSize);
      constexpr int kWidth = kQuads <= 4 ? 2 : 4, kCount = kTileRows * kAllStates / kWidth;
#pragma unroll
      for (int first_lane = 0; first_lane < kCount; first_lane += 32) {
        const int i = first_lane + lane;
        if (kCount % 32 != 0 && i >= kCount) break;
        const int quad = i * kWidth / 4, rotation = kGroups < 8 ? quad * kGroups / 8 % kGroups : quad % kGroups;
        const int first = by_state_offset + 4 * ((quad * kGroups + rotation) * 4 + i * kWidth % 4);  // in bytes
        float sum[kWidth];
#pragma unroll
        for (int g = 0; g < kGroups; ++g) {
          float values[kWidth];
          load_floats<kWidth>(reinterpret_cast<const float*>(dynamic_shared() + (first ^ g * 16)), values);
#pragma unroll
          for (int k = 0; k < kWidth; ++k) sum[k] = g == 0 ? values[k] : sum[k] + values[k];
        }
        const int row = sum_row + i * kWidth / kAllStates;
        store_floats<kWidth>(sums + (row * 2 + kind) * kAllStates + i * kWidth % kAllStates, sum);
      }
    }
  }

  // Processes a tile in reverse. `state` is the state before the tile; d_state is k (backward.cuh) of the row after the
  // tile on entry, and of the tile's first row on return. B and C are the tile's first rows in the stage, which has the
  // rows of C behind those of B; `next` is called when registers are free to load the next tile's rows.
  template <typename LoadNext>
  __device__ void reverse_tile(const Rows& rows, int row0, const float* B, int sum_row, States& state, States& d_state,
                               LoadNext load_next) {
    const float* const C = B + Shape::kStageRows * kAllStates;
    const int row = row0 + element_row;
    const bool stores = stores_row(row);
    Element x;
    prepare<true>(rows, row0, x);
    float decay[kTileRows][kChannels][kStates], left[kTileRows][kChannels][kStates];  // left: decay times state before
#pragma unroll
    for (int r = 0; r < kTileRows; ++r) {
      float steps[kChannels], delta_us[kChannels], grads[kChannels], y[kChannels] = {};
      float b[kStates], c_row[kStates], d_c[kStates] = {};
      load_scanned(step, r, steps), load_scanned(delta_u, r, delta_us), load_scanned(grad, r, grads);
      load_staged(B + r * kAllStates, b), load_staged(C + r * kAllStates, c_row);
#pragma unroll
      for (int c = 0; c < kChannels; ++c)
#pragma unroll
        for (int s = 0; s < kStates; ++s) {
          decay[r][c][s] = fast_exp2(steps[c] * a[c][s]);
          left[r][c][s] = decay[r][c][s] * state[c][s];
          state[c][s] = left[r][c][s] + delta_us[c] * b[s];
          y[c] += c_row[s] * state[c][s];
          d_c[s] += grads[c] * state[c][s];
        }
      put_by_state(r, sum_row, 1, d_c);
      put_by_channel(r, 0, y);
    }
    __syncwarp();
    sum_by_state(sum_row, 1);
    if (p.z.data) {
      float y[kElements], d_z[kElements], skip[kElements], us[kElements];
      load_floats<kElements>(u + element_offset, us);
      sum_by_channel(0, y);
      load_floats<kElements>(D + element, skip);
#pragma unroll
      for (int k = 0; k < kElements; ++k) d_z[k] = x.d_z[k] * (y[k] + skip[k] * us[k]);
      if (stores) store_elements(p.d_z, row, d_z);
    }
    __syncwarp();
    States d_a;
    load_kept_state(d_A, d_a);
#pragma unroll
    for (int r = kTileRows - 1; r >= 0; --r) {
      float steps[kChannels], delta_us[kChannels], grads[kChannels], d_delta_u[kChannels] = {}, d_step[kChannels] = {};
      float b[kStates], c_row[kStates], d_b[kStates] = {};
      load_scanned(step, r, steps), load_scanned(delta_u, r, delta_us), load_scanned(grad, r, grads);
      load_staged(B + r * kAllStates, b), load_staged(C + r * kAllStates, c_row);
#pragma unroll
      for (int c = 0; c < kChannels; ++c)
#pragma unroll
        for (int s = 0; s < kStates; ++s) {
          const float g = grads[c] * c_row[s] + d_state[c][s], product = g * left[r][c][s];
          d_delta_u[c] += b[s] * g;
          d_b[s] += delta_us[c] * g;
          d_step[c] += a[c][s] * product;
          d_a[c][s] += steps[c] * product;
          d_state[c][s] = decay[r][c][s] * g;
        }
      put_by_state(r, sum_row, 0, d_b);
      put_by_channel(r, 0, d_delta_u);
      put_by_channel(r, 1, d_step);
    }
    keep_state(d_A, d_a);
    load_next();
    __syncwarp();
    float d_delta_u[kElements], d_step[kElements], steps[kElements], grads[kElements], d_u[kElements], us[kElements];
    load_floats<kElements>(u + element_offset, us);
    sum_by_channel(0, d_delta_u), sum_by_channel(1, d_step);
    load_floats<kElements>(step + element_offset, steps);
    load_floats<kElements>(grad + element_offset, grads);
    float d_delta[kElements], skip[kElements];
    load_floats<kElements>(D + element, skip);
#pragma unroll
    for (int k = 0; k < kElements; ++k) {
      d_u[k] = skip[k] * grads[k] + steps[k] * d_delta_u[k];
      d_delta[k] = (us[k] * d_delta_u[k] + kLn2 * d_step[k]) * x.slope[k];
    }
    if (stores) {
      store_elements(p.d_u, row, d_u);
      store_elements(p.d_delta, row, d_delta);
      float sum_D[kElements], sum_bias[kElements];
      load_floats<kElements>(d_D, sum_D), load_floats<kElements>(d_bias, sum_bias);
#pragma unroll
      for (int k = 0; k < kElements; ++k) sum_D[k] += grads[k] * us[k], sum_bias[k] += d_delta[k];
      store_floats<kElements>(d_D, sum_D), store_floats<kElements>(d_bias, sum_bias);
    }
    sum_by_state(sum_row, 0);
  }

  // Stores the partial sums of the gradients of A, D and delta_bias, after the last segment.
  __device__ void store_partials(int64_t persistent_block) const {
    States d_a;
    load_kept_state(d_A, d_a);
    store_states(p.d_A_partials, persistent_block, d_a);
    const int64_t i = persistent_block * p.channels + first_channel + element;
#pragma unroll
    for (int k = 0; k < kElements; ++k) {
      const float sum_D = row_sum(d_D[k]), sum_bias = row_sum(d_bias[k]);
      if (lane >= 8 || lane % Shape::kParts != 0 || k >= valid_elements) continue;
      if (p.d_D) p.d_D_partials[i + k] = sum_D;
      if (p.d_delta_bias) p.d_bias_partials[i + k] = sum_bias;
    }
  }
  // Sum over the lanes that have the same channels of different rows.
  static __device__ float row_sum(float x) {
    x += __shfl_xor_sync(0xffffffffu, x, 8);
    return x + __shfl_xor_sync(0xffffffffu, x, 16);
  }
};

}  // namespace recgrela::cuda
