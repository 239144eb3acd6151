// Scan of selective_scan's backward by one warp, in tiles of 4 rows.
//
// Lane l has the states 4 g .. 4 g + 3 of a few channels, where g = l / kGroups: decays, states and their gradients
// stay in registers, and a row of B and C is read once for all channels of a thread. Sums over channels (the gradients
// of B and C) and over states (of u, delta and z) leave a thread as partial sums in shared memory, which are added for
// all rows of a tile at once.
#pragma once

#include "kernels/selective_scan/backward_elements.cuh"

namespace recgrela::cuda {

template <typename E, typename Shape>
struct BackwardWarp : BackwardElements<E, Shape> {
  using Elements = BackwardElements<E, Shape>;
  using Elements::p, Elements::lane, Elements::first_channel, Elements::shared;
  static constexpr int kGroups = Shape::kGroups, kChannels = Shape::kChannels, kStates = Shape::kStates;
  static constexpr int kLanes = Shape::kLanes, kQuads = Shape::kQuads, kAllStates = Shape::kAllStates;
  static constexpr int kWarpChannels = Shape::kWarpChannels;
  using States = float[kChannels][kStates];

  float* const sums;  // [kSumRows, 2, kAllStates]: gradients of rows of B and C by the channels of the warp
  float* const d_A;   // the thread's quads of the gradient of A
  States a;           // A log2(e)

  __device__ BackwardWarp(const SelectivePlan& p, int column)
      : Elements(p, column), sums(shared + Shape::kSumsAt), d_A(shared + Shape::kGradientAt + lane * 4) {
    keep_state(d_A, States{});
    load_states(p.A, 0, a);
#pragma unroll
    for (int c = 0; c < kChannels; ++c)
#pragma unroll
      for (int s = 0; s < kStates; ++s) a[c][s] *= kLog2E;
  }

  // Calls f(element in the thread's quads, index in a matrix [C, N], number of states that exist) for each four of the
  // thread's states. A loop, which needs the states in shared memory, compiles to less code.
  template <typename F>
  __device__ void for_each_quad(F f) const {
    const int thread = computed_here(lane), channel = first_channel + thread % kGroups * kChannels;
#pragma unroll 1
    for (int i = 0; i < kChannels * kStates / 4; ++i) {
      const int c = i / (kStates / 4), n = i % (kStates / 4) * 4 * kLanes + thread / kGroups * 4;
      const int count = channel + c < p.channels ? static_cast<int>(p.num_states) - n : 0;
      f(i * 128, int64_t{channel + c} * p.num_states + n, count);
    }
  }
  // Loads the thread's states of matrix `index` of [.., C, N]; zeros if `matrices` is null. Overwrites the states
  // before tiles unless all states exist.
  __device__ void load_states(const float* matrices, int64_t index, States& out) const {
    if (matrices && this->whole && p.num_states == kAllStates && reinterpret_cast<uintptr_t>(matrices) % 16 == 0) {
      const int thread = computed_here(lane), channel = first_channel + thread % kGroups * kChannels;
      const float* const from =
          matrices + (index * static_cast<uint32_t>(p.channels) + channel) * kAllStates + thread / kGroups * 4;
#pragma unroll
      for (int c = 0; c < kChannels; ++c)
#pragma unroll
        for (int s = 0; s < kStates; s += 4) {
          float quad[4];
          load_floats<4>(from + c * kAllStates + s * kLanes, quad);
#pragma unroll
          for (int i = 0; i < 4; ++i) out[c][s + i] = quad[i];
        }
    } else {
      float* const quads = state_before(1);
      if (matrices) {
        const float* const from = matrices + index * p.state_size();
        for_each_quad([&](int at, int64_t i, int count) {
          float quad[4];
#pragma unroll
          for (int k = 0; k < 4; ++k) quad[k] = k < count ? from[i + k] : 0.f;
          store_floats<4>(quads + at, quad);
        });
      } else {
        keep_state(quads, States{});
      }
      load_kept_state(quads, out);
    }
  }
  // Stores the thread's states, which `quads` has as keep_state leaves them.
  __device__ void store_states(float* matrices, int64_t index, const float* quads) const {
    for_each_quad([&](int at, int64_t i, int count) {
      float quad[4];
      load_floats<4>(quads + at, quad);
#pragma unroll
      for (int k = 0; k < 4; ++k)
        if (k < count) matrices[index * p.state_size() + i + k] = quad[k];
    });
  }
  // The thread's states before tile t of the chunk, 0 < t < kTiles - 1.
  __device__ float* state_before(int t) const {
    return shared + Shape::kStatesAt + (t - 1) * Shape::kStatesSize + lane * 4;
  }
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

  // Advances the state over tile t, whose rows of B begin at `B`.
  __device__ void advance(int t, const float* B, States& state) const {
    const float *const tile_steps = this->step + t * Shape::kTileSize, *const tile_inputs =
                                                                           this->delta_u + t * Shape::kTileSize;
#pragma unroll
    for (int r = 0; r < kTileRows; ++r) {
      float steps[kChannels], delta_us[kChannels], b[kStates];
      load_scanned(tile_steps, r, steps), load_scanned(tile_inputs, r, delta_us);
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
    float* const to = kGroups > 1 ? shared + r * kGroups * kAllStates : sums + ((sum_row + r) * 2 + kind) * kAllStates;
#pragma unroll
    for (int s = 0; s < kStates; s += 4)
      store_floats<4>(to + (s / 4 * 32 + lane) * 4, {values[s], values[s + 1], values[s + 2], values[s + 3]});
  }
  // Stores a thread's share of the sums over the states of row r; they have kind 0 or 1.
  __device__ void put_by_channel(int r, int kind, const float (&values)[kChannels]) const {
    store_floats<kChannels>(this->by_channel + kind * Shape::kByChannelSize + (r * 32 + lane) * kChannels, values);
  }
  // Adds the gradients of B (kind 0) or C (kind 1) of a tile over the groups of channels, and stores them from row
  // `sum_row` of `sums` on. A lane adds 2 states, or 4. Lanes begin at different pairs of groups, and so at different
  // banks.
  __device__ void sum_by_state(int sum_row, int kind) const {
    if constexpr (kGroups > 1) {
      constexpr int kPairs = kGroups / 2;
      const int warp_offset = 4 * (Shape::kStageSize + static_cast<int>(threadIdx.x) / 32 * Shape::kWarpSize);
      constexpr int kWidth = kQuads <= 4 ? 2 : 4, kCount = kTileRows * kAllStates / kWidth;
#pragma unroll
      for (int first_lane = 0; first_lane < kCount; first_lane += 32) {
        const int i = first_lane + lane;
        if (kCount % 32 != 0 && i >= kCount) break;
        const int quad = i * kWidth / 4, pair = (kGroups < 8 ? quad * kGroups / 8 : quad) % kPairs;
        const int first = warp_offset + 16 * (quad * kGroups + 2 * pair) + 4 * (i * kWidth % 4);  // in bytes
        float sum[kWidth];
#pragma unroll
        for (int g = 0; g < kGroups; ++g) {
          float values[kWidth];
          load_floats<kWidth>(reinterpret_cast<const float*>(dynamic_shared() + (first ^ g / 2 * 32) + g % 2 * 16),
                              values);
#pragma unroll
          for (int k = 0; k < kWidth; ++k) sum[k] = g == 0 ? values[k] : sum[k] + values[k];
        }
        const int row = sum_row + i * kWidth / kAllStates;
        store_floats<kWidth>(sums + (row * 2 + kind) * kAllStates + i * kWidth % kAllStates, sum);
      }
    }
  }

  // Processes tile t in reverse. `state` is the state before the tile; d_state is k (backward.cuh) of the row after the
  // tile on entry, and of the tile's first row on return. B is the tile's first row in the stage, which has the rows of
  // C behind those of B. The gradients of B and C are put into `sums` from sum_row on. load_next is called when
  // registers are free for the next tile's rows.
  template <typename LoadNext>
  __device__ void reverse_tile(const typename Elements::Rows& rows, int t, int row0, const float* B, int sum_row,
                               States& state, States& d_state, LoadNext load_next) {
    const float* const C = B + Shape::kStageRows * kAllStates;
    const float *const tile_steps = this->step + t * Shape::kTileSize, *const tile_inputs =
                                                                           this->delta_u + t * Shape::kTileSize;
    float factors[Elements::kElements];
    this->prepare_tile(rows, row0, factors);
    float decay[kTileRows][kChannels][kStates], left[kTileRows][kChannels][kStates];  // left: decay times state before
#pragma unroll
    for (int r = 0; r < kTileRows; ++r) {
      float steps[kChannels], delta_us[kChannels], grads[kChannels], y[kChannels] = {};
      float b[kStates], c_row[kStates], d_c[kStates] = {};
      load_scanned(tile_steps, r, steps), load_scanned(tile_inputs, r, delta_us), load_scanned(this->grad, r, grads);
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
    if (p.z.data) this->store_gate_gradient(t, row0, factors);
    __syncwarp();
    States d_a;
    load_kept_state(d_A, d_a);
#pragma unroll
    for (int r = kTileRows - 1; r >= 0; --r) {
      float steps[kChannels], delta_us[kChannels], grads[kChannels], d_delta_u[kChannels] = {}, d_step[kChannels] = {};
      float b[kStates], c_row[kStates], d_b[kStates] = {};
      load_scanned(tile_steps, r, steps), load_scanned(tile_inputs, r, delta_us), load_scanned(this->grad, r, grads);
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
    this->store_gradients(t, row0);
    sum_by_state(sum_row, 0);
  }

  // Stores the partial sums of the gradients of A, D and delta_bias, after the last segment.
  __device__ void store_partials(int64_t persistent_block) const {
    store_states(p.d_A_partials, persistent_block, d_A);
    this->store_totals(persistent_block);
  }
};

}  // namespace recgrela::cuda
