// Backward of the convolution c = bias + sum_k weight_k v[row - 3 + k], whose SiLU is added to the attention, by a warp
// at its own 16 channels, for heads of 64 and 128 channels.
#pragma once

#include "kernels/gated_rela/wide/gradient_team.cuh"

namespace recgrela::cuda {

// Rows of 16 channels of float32 in shared memory, as a warp shifts them: kMaxHistory rows before a tile, the tile, and
// kMaxHistory rows after it.
constexpr int kShiftedRows = kTile + 2 * kMaxHistory;

template <typename E, int kHead>
struct WideConvGradient {
  using T = GradientTeam<E, kHead>;
  const T& team;
  const float* weights;  // [5, kHead] in shared memory, as load_weights stores them
  float* rows;           // [kShiftedRows, 16] in shared memory, of this warp
  // Gradients of the weights and the bias, summed over this lane's rows: in registers, or those of the weights in
  // shared memory where registers run out.
  static constexpr int kInShared = sizeof(E) == 4 && kHead == 128 ? kMaxKernelSize : 0;
  static constexpr int kSharedSums = kInShared > 0 ? kInShared * T::kThreads : 1;
  LaneChannels in_registers[kMaxKernelSize + 1 - kInShared];
  LaneChannels* in_shared;  // [kSharedSums]

  // The last rows in shared memory are the gradients of c after the current tile.
  __device__ WideConvGradient(const T& team, const float* weights, float* rows, LaneChannels* shared)
      : team(team), weights(weights), rows(rows), in_shared(shared + threadIdx.x) {
#pragma unroll
    for (int i = 0; i < kInShared; ++i) d_weight(i) = LaneChannels{};
    store_after(Acc{});
  }
  __device__ LaneChannels& d_weight(int i) {
    return i < kInShared ? in_shared[i * T::kThreads] : in_registers[i - kInShared];
  }

  // Stores the weights in shared memory. Rows 0 to 3 apply to the rows of v from 3 rows before the current one to the
  // current one; weights that a shorter kernel lacks are zero. Row 4 is the bias.
  static __device__ void load_weights(const T& team, float* weights) {
    const RelaPlan& p = team.p;
#pragma unroll 1
    for (int i = threadIdx.x; i < kHead * (kMaxKernelSize + 1); i += T::kThreads) {
      const int row = i / kHead, k = row - (kMaxKernelSize - p.kernel_size);
      const int64_t channel = team.head_channel() + i % kHead;
      float x = 0.f;
      if (row == kMaxKernelSize)
        x = p.conv_bias[channel];
      else if (k >= 0)
        x = p.conv_weight[channel * p.kernel_size + k];
      weights[i] = x;
    }
  }

  // The lane's four channels of a shifted row.
  __device__ float* lane_row(int row) const { return rows + row * kTile + team.lane % 4 * 4; }
  __device__ void store_row(int row, const Acc& a, int h) const {
    *reinterpret_cast<float4*>(lane_row(row)) =
        make_float4(a.x[0][2 * h], a.x[0][2 * h + 1], a.x[1][2 * h], a.x[1][2 * h + 1]);
  }

  __device__ void store_after(const Acc& d_c) const {
    if (team.lane / 4 < kMaxHistory) store_row(kMaxHistory + kTile + team.lane / 4, d_c, 0);
  }

  // Adds the rows `shift` after the lane's, times w.
  __device__ void add_shifted(Acc& sum, const LaneChannels& w, int shift) const {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const LaneChannels x = load_channels(lane_row(team.lane / 4 + 8 * h + shift));
#pragma unroll
      for (int e = 0; e < 4; ++e) sum.x[e / 2][2 * h + e % 2] += w.x[e / 2][e % 2] * x.x[e / 2][e % 2];
    }
  }

  // Loads the kMaxHistory values before row `row` of the segment, where lanes hold the last rows of a tile.
  __device__ LaneRows<E> load_history(int row) const {
    const RelaPlan& p = team.p;
    LaneRows<E> history;
    const int back = 8 - team.lane / 4;  // rows before `row`
    if (back > kMaxHistory) return history;
    if (team.segment.begin + row - back >= team.segment.sequence_begin) {
      load_lane_row(history, 1, team.template chunk_row<Matrices::kV>(0) + (int64_t{row} - back) * p.v.stride);
    } else if (p.initial_history) {
      // Values before the sequence: the chunk begins with the sequence or the sequence has fewer than 3 rows.
      const int64_t before = team.segment.sequence_begin - (team.segment.begin + row - back);  // at least 1
      if (before < p.kernel_size)
        load_lane_row(history, 1,
                      static_cast<const E*>(p.initial_history) +
                          ((team.segment.sequence + 1) * (p.kernel_size - 1) - before) * p.width() +
                          team.head_channel() + team.channel());
    }
    return history;
  }

  // From values v of a tile, the tile before it, and the gradient `a` of SiLU(c), computes SiLU(c). Adds the gradient
  // of the values to d_v and the gradients of the weights unless only the tile after the segment is prepared.
  template <bool kOwnRows>
  __device__ Acc step(const Acc& v, const Acc& before, const Acc& a, Acc& d_v) {
    const int row = team.lane / 4;
    auto weight = [&](int i) { return load_channels(weights + i * kHead + team.channel()); };
    if (row >= 8 - kMaxHistory) store_row(row - (8 - kMaxHistory), before, 1);
#pragma unroll
    for (int h = 0; h < 2; ++h) store_row(kMaxHistory + row + 8 * h, v, h);
    __syncwarp();
    // Reading weights and shifted rows again is cheaper than holding the registers.
    Acc c = equal_rows(weight(kMaxKernelSize)), d_c;
#pragma unroll
    for (int i = 0; i < kMaxKernelSize; ++i) add_shifted(c, weight(i), i);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      float& x = c.x[i / 4][i % 4];
      const float s = sigmoid(x), y = x * s;
      d_c.x[i / 4][i % 4] = a.x[i / 4][i % 4] * silu_grad(s, y);
      x = y;
    }
    if constexpr (kOwnRows) {
#pragma unroll
      for (int i = 0; i <= kMaxKernelSize; ++i) {
        LaneChannels sum = d_weight(i);
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const LaneChannels x =
              i == kMaxKernelSize ? LaneChannels{{{1.f, 1.f}, {1.f, 1.f}}} : load_channels(lane_row(row + 8 * h + i));
#pragma unroll
          for (int e = 0; e < 4; ++e) sum.x[e / 2][e % 2] += d_c.x[e / 2][2 * h + e % 2] * x.x[e / 2][e % 2];
        }
        d_weight(i) = sum;
      }
      __syncwarp();
#pragma unroll
      for (int h = 0; h < 2; ++h) store_row(kMaxHistory + row + 8 * h, d_c, h);
      __syncwarp();
#pragma unroll
      for (int i = 0; i < kMaxKernelSize; ++i) add_shifted(d_v, weight(kMaxHistory - i), kMaxHistory + i);
    }
    __syncwarp();
    store_after(d_c);
    return c;
  }

  // Adds the gradient of the final history to the last values of the sequence, at a tile that begins at row `first` of
  // the segment.
  __device__ void add_final_gradient(Acc& d_v, int first) const {
    const RelaPlan& p = team.p;
    const int history = p.kernel_size - 1;
    const int64_t begin = team.segment.begin + first - (team.segment.sequence_end - history);
    if (begin + kTile <= 0) return;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int64_t last = begin + team.lane / 4 + 8 * h;
      if (last < 0 || last >= history) continue;
      LaneRows<E> rows;
      load_lane_row(rows, h,
                    static_cast<const E*>(p.d_final_history) + (team.segment.sequence * history + last) * p.width() +
                        team.head_channel() + team.channel());
      const Acc d = unpack_rows(rows);
#pragma unroll
      for (int e = 0; e < 4; ++e) d_v.x[e / 2][2 * h + e % 2] += d.x[e / 2][2 * h + e % 2];
    }
  }

  __device__ void store_weights() {
    const RelaPlan& p = team.p;
    float* const out =
        p.conv_partials + (team.segment.slot * p.width() + team.head_channel() + team.channel()) * (kMaxKernelSize + 1);
#pragma unroll
    for (int i = 0; i <= kMaxKernelSize; ++i) {
      const LaneChannels sums = d_weight(i);
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        float sum = sums.x[e / 2][e % 2];
#pragma unroll
        for (int lanes = 4; lanes < 32; lanes *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, lanes);
        if (team.lane < 4) out[e * (kMaxKernelSize + 1) + i] = sum;
      }
    }
  }

  // Stores the gradient of the initial history, from the gradients of c at the sequence's first rows.
  __device__ void store_initial_history() const {
    const RelaPlan& p = team.p;
    const E* const d_final_history = static_cast<const E*>(p.d_final_history);
    const int history = p.kernel_size - 1;
    __syncwarp();
    for (int i = team.lane; i < history * kTile; i += 32) {
      const int back = i / kTile + 1, column = i % kTile;  // rows before the first of the sequence
      float d = 0.f;
      for (int s = back; s <= history; ++s)
        d += weights[(kMaxHistory - s) * kHead + team.own() + column] *
             rows[(kMaxHistory + kTile + s - back) * kTile + column];
      const int64_t channel = team.head_channel() + team.own() + column;
      const int64_t last = history - back - team.segment.length(), base = team.segment.sequence * history;
      if (d_final_history && last >= 0) d += to_float(d_final_history[(base + last) * p.width() + channel]);
      static_cast<E*>(p.d_initial_history)[(base + history - back) * p.width() + channel] = from_float<E>(d);
    }
  }
};

}  // namespace recgrela::cuda
