// selective_scan's backward: chunks of 32 rows from the last to the first, each from the state that the forward kept.
//
// A chunk is gone through in tiles of 4 rows: once to find the states before each tile, but for the last one, and then
// from the last tile to the first. The rows of a tile are computed once more, with the decays and the states behind
// each row in registers, and gone back over with k_i = a_i g_i of g_i = dy_i C_i + k_{i+1}, where dy is the gradient
// before the gate.
#pragma once

#include "kernels/selective_scan/team.cuh"

namespace recgrela::cuda {

constexpr int kBackwardRows = 4;  // of a tile

// The backward's arrays in shared memory.
template <int kLanes>
struct BackwardShared {
  static constexpr int kStates = kLanes * kThreadStates;
  static constexpr int kTiles = SelectiveScanParams::kCheckpointRows / kBackwardRows;
  SelectiveTile<kLanes, kBackwardRows> tile;
  float* parts;  // [warps, kBackwardRows, 2, kStates] of dB and dC
  float* sums;   // [3, kBackwardRows, channels] of C h, of B g and of A g a h over the states
  // Of each thread by itself, [.., kThreadStates / 4, threads]: the states before the tiles, A by log2(e), its
  // gradient. They would take registers that the way back needs.
  float4 *before, *a, *d_a;
  float* totals;  // [2, threads] of the gradients of D and the bias, by who prepares

  static constexpr size_t bytes(int channels) {
    const int threads = channels * kLanes;
    return sizeof(float) *
           (SelectiveTile<kLanes, kBackwardRows>::size(channels) + threads / 32 * kBackwardRows * 2 * kStates +
            3 * kBackwardRows * channels + ((kTiles + 2) * kThreadStates + 2) * threads);
  }
  __device__ explicit BackwardShared(int channels) : tile(reinterpret_cast<float*>(dynamic_shared()), channels) {
    const int threads = channels * kLanes;
    parts = reinterpret_cast<float*>(dynamic_shared()) + tile.size(channels);
    before = reinterpret_cast<float4*>(parts + threads / 32 * kBackwardRows * 2 * kStates);
    a = before + kTiles * kThreadStates / 4 * threads;
    d_a = a + kThreadStates / 4 * threads;
    totals = reinterpret_cast<float*>(d_a + kThreadStates / 4 * threads);
    sums = totals + 2 * threads;
  }
};

// Of values that the warp's channels have for the same states, the sums over those channels, each in one lane: it
// keeps the kCount / (lanes summed over) values from `first` on. Whether this lane is the one to write them.
template <int kLanes, int kOffset, int kCount, int kSize>
__device__ bool sum_of_channels(float (&values)[kSize], int& first) {
  if constexpr (kOffset < kLanes) {
    return true;
  } else if constexpr (kCount == 1) {
    values[0] += __shfl_xor_sync(0xffffffffu, values[0], kOffset);
    return sum_of_channels<kLanes, kOffset / 2, 1>(values, first) && !(threadIdx.x & kOffset);
  } else {
    constexpr int kHalf = kCount / 2;
    const bool upper = threadIdx.x & kOffset;
#pragma unroll
    for (int i = 0; i < kHalf; ++i) {
      const float sent = upper ? values[i] : values[i + kHalf], own = upper ? values[i + kHalf] : values[i];
      values[i] = own + __shfl_xor_sync(0xffffffffu, sent, kOffset);
    }
    if (upper) first += kHalf;
    return sum_of_channels<kLanes, kOffset / 2, kHalf>(values, first);
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

  // What this thread keeps in shared memory.
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
  __device__ float4* before(int tile) const { return shared.before + tile * (kThreadStates / 4) * p.threads; }

  // What the states need to be found again, and for kBack what their gradients need.
  template <bool kBack>
  __device__ void prepare(int64_t row0, int64_t end) const {
    this->template each_element<kRows>(row0, end, [&](int r, int64_t at, bool there) {
      const int i = r * this->channels + this->column;
      const float step = there ? this->step_at(at) : 0.f;
      shared.tile.step[i] = step;
      shared.tile.delta_u[i] = there ? step * this->element(p.u, at) : 0.f;
      if constexpr (kBack) shared.tile.grad[i] = there ? this->gated_grad(at) : 0.f;
    });
    this->template load_rows<kRows>(p.B, row0, end, shared.tile.B);
    if constexpr (kBack) this->template load_rows<kRows>(p.C, row0, end, shared.tile.C);
  }

  // From the state before a tile to the one behind it.
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

  // Back over a tile: leaves the sums over states and over the warp's channels in shared memory.
  __device__ void go_back(const float4* state_before, float (&carried)[kThreadStates]) {
    float decay[kRows][kThreadStates], state[kRows][kThreadStates];
    float a[kThreadStates], before[kThreadStates];
    get(shared.a, a), get(state_before, before);
    // __syncwarp is a barrier to the compiler too: it would load for several rows at once, beyond the registers there
    // are.
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
        carried[s] += grad * row[s];
      }
      put_parts(2 * r + 1, by_state);
      __syncwarp();
      this->load_shared(shared.tile.B, r, row);
#pragma unroll
      for (int s = 0; s < kThreadStates; ++s) {
        d_delta_u += row[s] * carried[s];
        by_state[s] = delta_u * carried[s];
        carried[s] *= decay[r][s];
      }
      put_parts(2 * r, by_state);
      __syncwarp();
      if (r == kRows - 1) get(shared.d_a, d_a);
      if (r == 0) get(state_before, before);
      get(shared.a, row);
#pragma unroll
      for (int s = 0; s < kThreadStates; ++s) {
        const float product = carried[s] * (r > 0 ? state[r > 0 ? r - 1 : 0][s] : before[s]);
        d_step += row[s] * product;
        d_a[s] += step * product;
      }
      y = this->sum_of_lanes(y), d_delta_u = this->sum_of_lanes(d_delta_u);
      d_step = this->sum_of_lanes(d_step);
      if (this->lane() == 0) {
        float* const sums = shared.sums + i;
        sums[0] = y;
        sums[kRows * this->channels] = d_delta_u;
        sums[2 * kRows * this->channels] = d_step * kLn2;
      }
    }
    put(shared.d_a, d_a);
  }

  // The sums over the warp's channels to one of the [rows, 2] places of its parts.
  __device__ void put_parts(int place, float (&by_state)[kThreadStates]) const {
    constexpr int kCount = kThreadStates * kLanes > 32 ? kThreadStates * kLanes / 32 : 1;
    int first = 0;
    const bool writes = sum_of_channels<kLanes, 16, kThreadStates>(by_state, first);
    float* const parts = shared.parts + (threadIdx.x / 32 * kRows * 2 + place) * kStates;
#pragma unroll
    for (int i = 0; i < kCount; ++i)
      if (writes) parts[this->state(first + i)] = by_state[i];
  }

  // The gradients of a tile's elements and rows, when all threads have gone back over it.
  __device__ void finish(int64_t row0, int64_t end) {
    this->template each_element<kRows>(row0, end, [&](int r, int64_t at, bool there) {
      if (!there) return;
      const float* const sums = shared.sums + r * this->channels + this->column;
      const int next = kRows * this->channels;
      const float u = this->element(p.u, at), dy = this->element(p.d_y, at),
                  x = this->element(p.delta, at) + this->of_channel(p.delta_bias);
      const float step = p.delta_softplus ? softplus(x) : x, slope = p.delta_softplus ? sigmoid(x) : 1.f;
      float grad = dy;
      if (p.z.data) {
        const float z = this->element(p.z, at), gate = sigmoid(z);
        grad *= z * gate;
        this->put_element(p.d_z, at, dy * (sums[0] + this->of_channel(p.D) * u) * gate * (1.f + z * (1.f - gate)));
      }
      const float delta_grad = (u * sums[next] + sums[2 * next]) * slope;
      this->put_element(p.d_u, at, this->of_channel(p.D) * grad + step * sums[next]);
      this->put_element(p.d_delta, at, delta_grad);
      shared.totals[threadIdx.x] += grad * u;
      shared.totals[p.threads + threadIdx.x] += delta_grad;
    });
    const int warps = p.threads / 32;
#pragma unroll 1
    for (int i = threadIdx.x; i < kRows * 2 * kStates; i += p.threads) {
      const int r = i / (2 * kStates), n = i % kStates;
      const bool is_C = i / kStates % 2;
      const int64_t at = row0 + r;
      if (at >= end || n >= p.num_states) continue;
      float sum = 0.f;
      for (int w = 0; w < warps; ++w) sum += shared.parts[w * kRows * 2 * kStates + i];
      if (p.row_parts) {
        const int64_t column = this->first_channel / this->channels - p.first_column;
        p.row_parts[(column * p.sequences.num_rows + at) * 2 * p.num_states + (is_C ? p.num_states : 0) + n] = sum;
      } else {
        const RowMatrix& to = is_C ? p.d_C : p.d_B;
        static_cast<E*>(to.data)[at * to.stride + n] = from_float<E>(sum);
      }
    }
  }

  // The block's parts of the gradients of A, D and the bias, when it is through with all its segments.
  __device__ void put_sums(int64_t persistent_block) const {
    float d_a[kThreadStates];
    get(shared.d_a, d_a);
    this->store_states(p.A_parts, persistent_block, d_a);
    __syncthreads();
    if (this->row != 0 || this->first_channel + this->column >= p.channels) return;
    float skip_sum = 0.f, bias_sum = 0.f;
    for (int i = this->column; i < p.threads; i += this->channels)
      skip_sum += shared.totals[i], bias_sum += shared.totals[p.threads + i];
    const int64_t at = persistent_block * p.channels + this->first_channel + this->column;
    if (p.d_D) p.D_parts[at] = skip_sum;
    if (p.d_delta_bias) p.bias_parts[at] = bias_sum;
  }
};

// Blocks on a multiprocessor that there are registers for, without spills.
template <int kLanes>
constexpr int kBackwardBlocks = kLanes < 8 ? 3 : 2;

template <typename E, int kLanes>
__global__ void __launch_bounds__(kBackwardThreads, kBackwardBlocks<kLanes>) selective_backward(const SelectivePlan p) {
  constexpr int kRows = kBackwardRows, kChunk = SelectiveScanParams::kCheckpointRows, kTiles = kChunk / kRows;
  const int column = p.first_column + static_cast<int>(blockIdx.x % p.launch_columns);
  const int persistent_block = static_cast<int>(blockIdx.x / p.launch_columns);
  BackwardTeam<E, kLanes> team(p, column);
#pragma unroll 1
  for (int slot = persistent_block; slot < p.segments.slots; slot += static_cast<int>(p.persistent_blocks)) {
    float carried[kThreadStates];
    int64_t row0, end;
    int chunks, number;  // number: of the kept states behind the chunk's
    {
      const ScanSegment segment = find_segment(p.segments, slot);
      if (!segment.taken()) continue;
      if (segment.count > 1) {
        team.load_states(p.segment_states, slot, carried);
      } else {
        team.load_states(p.d_final_state, segment.sequence, carried);
      }
      end = segment.end;
      chunks = static_cast<int>((end - segment.begin + kChunk - 1) / kChunk);
      row0 = segment.begin + int64_t{chunks} * kChunk;
      number = static_cast<int>(first_slot(p.sequences, kChunk, segment.sequence) +
                                segment.index * (p.segments.rows / kChunk)) +
               chunks;
    }
    int tiles = static_cast<int>(kTiles - (row0 - end) / kRows);
#pragma unroll 1
    for (; chunks > 0; --chunks, tiles = kTiles) {
      row0 -= kChunk, number -= 1;
      float state[kThreadStates];
      team.load_states(p.checkpoints, number, state);
      team.put(team.before(0), state);
#pragma unroll 1
      for (int t = 0; t + 1 < tiles; ++t) {
        team.template prepare<false>(row0 + t * kRows, end);
        __syncthreads();
        team.advance(state);
        team.put(team.before(t + 1), state);
        __syncthreads();
      }
#pragma unroll 1
      for (int t = tiles - 1; t >= 0; --t) {
        team.template prepare<true>(row0 + t * kRows, end);
        __syncthreads();
        team.go_back(team.before(t), carried);
        __syncthreads();
        team.finish(row0 + t * kRows, end);
      }
    }
    if (p.d_initial_state) {
      const ScanSegment segment = find_segment(p.segments, slot);  // once more, or it would take registers until here
      if (segment.first()) team.store_states(p.d_initial_state, segment.sequence, carried);
    }
  }
  team.put_sums(persistent_block);
}

// A thread takes one number of a row of dB and dC side by side.
template <typename E>
__global__ void __launch_bounds__(kForwardThreads) selective_add_rows(const SelectivePlan p) {
  const int64_t width = 2 * p.num_states, size = p.sequences.num_rows * width;
  const int64_t i = int64_t{blockIdx.x} * kForwardThreads + threadIdx.x;
  if (i >= size) return;
  float sum = p.first_column ? p.row_sums[i] : 0.f;
  for (int k = 0; k < p.launch_columns; ++k) sum += p.row_parts[k * size + i];
  if (p.first_column + p.launch_columns < p.columns) {
    p.row_sums[i] = sum;
  } else {
    const int64_t row = i / width, n = i % width;
    const RowMatrix& to = n < p.num_states ? p.d_B : p.d_C;
    static_cast<E*>(to.data)[row * to.stride + n % p.num_states] = from_float<E>(sum);
  }
}

template <typename E>
cudaError_t SelectiveKernels<E>::backward(const SelectivePlan& p, cudaStream_t stream) {
  return with_lanes(p.num_states, [&](auto lanes) {
    constexpr int kLanes = decltype(lanes)::value;
    return launch(selective_backward<E, kLanes>, p.persistent_blocks * p.launch_columns, p.threads,
                  BackwardShared<kLanes>::bytes(p.block_channels), stream, p);
  });
}

template <typename E>
cudaError_t SelectiveKernels<E>::add_rows(const SelectivePlan& p, cudaStream_t stream) {
  return launch(selective_add_rows<E>, ceil_div(p.sequences.num_rows * 2 * p.num_states, kForwardThreads),
                kForwardThreads, 0, stream, p);
}

}  // namespace recgrela::cuda
