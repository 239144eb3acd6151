// Thread block of selective_scan's backward and its operations on a tile of 4 rows.
#pragma once

#include "kernels/selective_scan/team.cuh"

namespace recgrela::cuda {

constexpr int kBackwardRows = 4;  // rows per tile

// Shared memory of the backward.
template <int kLanes>
struct BackwardShared {
  static constexpr int kStates = kLanes * kThreadStates;
  static constexpr int kTiles = SelectiveScanParams::kCheckpointRows / kBackwardRows;
  SelectiveTile<kLanes, kBackwardRows> tile;
  float* row_partials;  // [warps, kBackwardRows, 2, kStates]: d_B and d_C summed over the channels of a warp
  float* sums;          // [3, kBackwardRows, channels]: C h, B g and A g a h summed over the states
  // Arrays of each thread, [.., kThreadStates / 4, threads], which save registers: states before the tiles; A log2(e);
  // the gradient of A.
  float4 *states_before, *a, *d_a;
  float* totals;  // [2, threads]: gradients of D and delta_bias, by the elements that a thread prepares

  static constexpr size_t bytes(int channels) {
    const int threads = channels * kLanes;
    return sizeof(float) *
           (SelectiveTile<kLanes, kBackwardRows>::size(channels) + threads / 32 * kBackwardRows * 2 * kStates +
            3 * kBackwardRows * channels + ((kTiles + 2) * kThreadStates + 2) * threads);
  }
  __device__ explicit BackwardShared(int channels) : tile(reinterpret_cast<float*>(dynamic_shared()), channels) {
    const int threads = channels * kLanes;
    row_partials = reinterpret_cast<float*>(dynamic_shared()) + tile.size(channels);
    states_before = reinterpret_cast<float4*>(row_partials + threads / 32 * kBackwardRows * 2 * kStates);
    a = states_before + kTiles * kThreadStates / 4 * threads;
    d_a = a + kThreadStates / 4 * threads;
    totals = reinterpret_cast<float*>(d_a + kThreadStates / 4 * threads);
    sums = totals + 2 * threads;
  }
};

// Sums `values` over the channels of the warp, between the lanes that hold the same states of different channels. These
// lanes divide the kCount sums among them: each keeps the sums from `first` on, in `values`. Returns whether this lane
// must store its sums.
template <int kLanes, int kOffset, int kCount, int kSize>
__device__ bool channel_sums(float (&values)[kSize], int& first) {
  if constexpr (kOffset < kLanes) {
    return true;
  } else if constexpr (kCount == 1) {
    values[0] += __shfl_xor_sync(0xffffffffu, values[0], kOffset);
    return channel_sums<kLanes, kOffset / 2, 1>(values, first) && !(threadIdx.x & kOffset);
  } else {
    constexpr int kHalf = kCount / 2;
    const bool upper = threadIdx.x & kOffset;
#pragma unroll
    for (int i = 0; i < kHalf; ++i) {
      const float sent = upper ? values[i] : values[i + kHalf], own = upper ? values[i + kHalf] : values[i];
      values[i] = own + __shfl_xor_sync(0xffffffffu, sent, kOffset);
    }
    if (upper) first += kHalf;
    return channel_sums<kLanes, kOffset / 2, kHalf>(values, first);
  }
}

template <typename E, int kLanes>
struct BackwardTeam : SelectiveTeam<E, kLanes> {
  using Team = SelectiveTeam<E, kLanes>;
  static constexpr int kRows = kBackwardRows, kStates = Team::kStates;
  using Team::p;
  const BackwardShared<kLanes> shared;

  __device__ BackwardTeam(const SelectivePlan& p, int column) : Team(p, column), shared(p.block_channels) {
    float a[kThreadStates];
    const float zero[kThreadStates] = {};
    this->load_states(p.A, 0, a);
#pragma unroll
    for (float& x : a) x *= kLog2E;
    put(shared.a, a), put(shared.d_a, zero);
    shared.totals[threadIdx.x] = shared.totals[p.threads + threadIdx.x] = 0.f;
  }

  // Stores and loads the thread's values in shared memory.
  __device__ void put(float4* to, const float (&values)[kThreadStates]) const {
#pragma unroll
    for (int i = 0; i < kThreadStates; i += 4)
      to[i / 4 * p.threads + threadIdx.x] = make_float4(values[i], values[i + 1], values[i + 2], values[i + 3]);
  }
  __device__ void get(const float4* from, float (&values)[kThreadStates]) const {
#pragma unroll
    for (int i = 0; i < kThreadStates; i += 4) {
      const float4 quad = from[i / 4 * p.threads + threadIdx.x];
      values[i] = quad.x, values[i + 1] = quad.y, values[i + 2] = quad.z, values[i + 3] = quad.w;
    }
  }
  __device__ float4* states_before(int tile) const {
    return shared.states_before + tile * (kThreadStates / 4) * p.threads;
  }

  // Prepares a tile for computing the states and, if kGradients, their gradients.
  template <bool kGradients>
  __device__ void prepare(int64_t row0, int64_t end) const {
    this->template for_each_element<kRows>(row0, end, [&](int r, int64_t row, bool valid) {
      const int i = r * this->channels + this->column;
      const float step = valid ? this->load_step(row) : 0.f;
      shared.tile.step[i] = step;
      shared.tile.delta_u[i] = valid ? step * this->load_element(p.u, row) : 0.f;
      if constexpr (kGradients) shared.tile.grad[i] = valid ? this->load_ungated_grad(row) : 0.f;
    });
    this->template load_rows<kRows>(p.B, row0, end, shared.tile.B);
    if constexpr (kGradients) this->template load_rows<kRows>(p.C, row0, end, shared.tile.C);
  }

  // Advances the state over a tile.
  __device__ void advance(float (&state)[kThreadStates]) const {
    float a[kThreadStates];
    get(shared.a, a);
#pragma unroll 2
    for (int r = 0; r < kRows; ++r) {
      const int i = r * this->channels + this->channel();
      const float step = shared.tile.step[i], delta_u = shared.tile.delta_u[i];
      float b[kThreadStates];
      this->load_shared(shared.tile.B, r, b);
#pragma unroll
      for (int s = 0; s < kThreadStates; ++s) state[s] = fast_exp2(step * a[s]) * state[s] + delta_u * b[s];
    }
  }

  // Processes a tile in reverse. d_state is k (backward.cuh) of the row after the tile on entry, and of the tile's
  // first row on return. Stores the sums over states and over the channels of a warp in shared memory.
  __device__ void reverse_tile(const float4* state_before, float (&d_state)[kThreadStates]) {
    float decay[kRows][kThreadStates], state[kRows][kThreadStates];
    float a[kThreadStates], before[kThreadStates];
    get(shared.a, a), get(state_before, before);
    // __syncwarp also stops the compiler from loading several rows at once, for which there are no registers.
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      __syncwarp();
      const int i = r * this->channels + this->channel();
      const float step = shared.tile.step[i], delta_u = shared.tile.delta_u[i];
      float b[kThreadStates];
      this->load_shared(shared.tile.B, r, b);
#pragma unroll
      for (int s = 0; s < kThreadStates; ++s) {
        decay[r][s] = fast_exp2(step * a[s]);
        before[s] = state[r][s] = decay[r][s] * before[s] + delta_u * b[s];
      }
    }
    float d_a[kThreadStates];
#pragma unroll
    for (int r = kRows - 1; r >= 0; --r) {
      __syncwarp();
      const int i = r * this->channels + this->channel();
      const float step = shared.tile.step[i], delta_u = shared.tile.delta_u[i], grad = shared.tile.grad[i];
      float row[kThreadStates], by_state[kThreadStates];
      float y = 0.f, d_delta_u = 0.f, d_step = 0.f;
      this->load_shared(shared.tile.C, r, row);
#pragma unroll
      for (int s = 0; s < kThreadStates; ++s) {
        y += row[s] * state[r][s];
        by_state[s] = grad * state[r][s];
        d_state[s] += grad * row[s];
      }
      store_row_partials(2 * r + 1, by_state);
      __syncwarp();
      this->load_shared(shared.tile.B, r, row);
#pragma unroll
      for (int s = 0; s < kThreadStates; ++s) {
        d_delta_u += row[s] * d_state[s];
        by_state[s] = delta_u * d_state[s];
        d_state[s] *= decay[r][s];
      }
      store_row_partials(2 * r, by_state);
      __syncwarp();
      if (r == kRows - 1) get(shared.d_a, d_a);
      if (r == 0) get(state_before, before);
      get(shared.a, row);
#pragma unroll
      for (int s = 0; s < kThreadStates; ++s) {
        const float product = d_state[s] * (r > 0 ? state[r > 0 ? r - 1 : 0][s] : before[s]);
        d_step += row[s] * product;
        d_a[s] += step * product;
      }
      y = this->lane_sum(y), d_delta_u = this->lane_sum(d_delta_u);
      d_step = this->lane_sum(d_step);
      if (this->lane() == 0) {
        float* const sums = shared.sums + i;
        sums[0] = y;
        sums[kRows * this->channels] = d_delta_u;
        sums[2 * kRows * this->channels] = d_step * kLn2;
      }
    }
    put(shared.d_a, d_a);
  }

  // Stores the sums over the channels of the warp at `index` of its [rows, 2].
  __device__ void store_row_partials(int index, float (&by_state)[kThreadStates]) const {
    constexpr int kCount = kThreadStates * kLanes > 32 ? kThreadStates * kLanes / 32 : 1;
    int first = 0;
    const bool writes = channel_sums<kLanes, 16, kThreadStates>(by_state, first);
    float* const out = shared.row_partials + (threadIdx.x / 32 * kRows * 2 + index) * kStates;
#pragma unroll
    for (int i = 0; i < kCount; ++i)
      if (writes) out[this->state(first + i)] = by_state[i];
  }

  // Stores the gradients of the elements and rows of a tile, after reverse_tile in all threads.
  __device__ void store_gradients(int64_t row0, int64_t end) {
    this->template for_each_element<kRows>(row0, end, [&](int r, int64_t row, bool valid) {
      if (!valid) return;
      const float* const sums = shared.sums + r * this->channels + this->column;
      const int next = kRows * this->channels;
      const float u = this->load_element(p.u, row), d_y = this->load_element(p.d_y, row),
                  x = this->load_element(p.delta, row) + this->load_channel(p.delta_bias);
      const float step = p.delta_softplus ? softplus(x) : x, slope = p.delta_softplus ? sigmoid(x) : 1.f;
      float grad = d_y;
      if (p.z.data) {
        const float z = this->load_element(p.z, row), s = sigmoid(z), gate = z * s;
        grad *= gate;
        this->store_element(p.d_z, row, d_y * (sums[0] + this->load_channel(p.D) * u) * silu_grad(s, gate));
      }
      const float d_delta = (u * sums[next] + sums[2 * next]) * slope;
      this->store_element(p.d_u, row, this->load_channel(p.D) * grad + step * sums[next]);
      this->store_element(p.d_delta, row, d_delta);
      shared.totals[threadIdx.x] += grad * u;
      shared.totals[p.threads + threadIdx.x] += d_delta;
    });
    const int warps = p.threads / 32;
#pragma unroll 1
    for (int i = threadIdx.x; i < kRows * 2 * kStates; i += p.threads) {
      const int r = i / (2 * kStates), n = i % kStates;
      const bool is_C = i / kStates % 2;
      const int64_t row = row0 + r;
      if (row >= end || n >= p.num_states) continue;
      float sum = 0.f;
      for (int w = 0; w < warps; ++w) sum += shared.row_partials[w * kRows * 2 * kStates + i];
      if (p.row_partials) {
        const int64_t column = this->first_channel / this->channels - p.first_column;
        p.row_partials[(column * p.sequences.num_rows + row) * 2 * p.num_states + (is_C ? p.num_states : 0) + n] = sum;
      } else {
        const RowMatrix& to = is_C ? p.d_C : p.d_B;
        static_cast<E*>(to.data)[row * to.stride + n] = from_float<E>(sum);
      }
    }
  }

  // Stores the block's partial sums of the gradients of A, D and delta_bias, after its last segment.
  __device__ void store_partials(int64_t persistent_block) const {
    float d_a[kThreadStates];
    get(shared.d_a, d_a);
    this->store_states(p.d_A_partials, persistent_block, d_a);
    __syncthreads();
    if (this->row != 0 || this->first_channel + this->column >= p.channels) return;
    float d_D = 0.f, d_bias = 0.f;
    for (int i = this->column; i < p.threads; i += this->channels)
      d_D += shared.totals[i], d_bias += shared.totals[p.threads + i];
    const int64_t i = persistent_block * p.channels + this->first_channel + this->column;
    if (p.d_D) p.d_D_partials[i] = d_D;
    if (p.d_delta_bias) p.d_bias_partials[i] = d_bias;
  }
};

}  // namespace recgrela::cuda
