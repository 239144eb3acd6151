// Backward of the convolution c = bias + sum_k weight_k v[row - 3 + k], whose SiLU is added to the attention, by a warp
// at its own 16 channels, for heads of 64 and 128 channels.
#pragma once

#include "kernels/gated_rela/wide/gradient_team.cuh"

namespace recgrela::cuda {

// Shared memory of a team for the convolution.
template <typename E, int kHead>
struct ConvGradientMemory {
  using T = GradientTeam<E, kHead>;
  // Rows of 16 channels. A warp has kMaxHistory rows of values before its row tile, and the tile: of values, and then
  // of gradients of c, which the warp of the row tile before reads too. The last two groups of kMaxHistory rows are the
  // gradients of c at the first rows of this chunk and of the one after it, in turn.
  static constexpr int kWarpRows = kMaxHistory + kTile, kSharedRows = T::kRowTiles * kWarpRows + 2 * kMaxHistory;
  static constexpr bool kKeepsValues = sizeof(E) == 4;  // which are in parts elsewhere

  alignas(16) float weights[kMaxKernelSize + 1][kHead];  // as load_weights stores them
  alignas(16) float rows[T::kTiles][kSharedRows * kTile];
  alignas(16) float values[kKeepsValues ? T::kWarps : 1][kKeepsValues ? kPackedTile : 4];
};

template <typename E, int kHead>
struct WideConvGradient {
  using T = GradientTeam<E, kHead>;
  using Memory = ConvGradientMemory<E, kHead>;
  Memory& m;
  // Gradients of the weights and the bias of channel l % 16, summed over eight rows of each tile.
  float sums[kMaxKernelSize + 1] = {};

  // No gradient of c comes after the segment's last chunk unless prepare stores some.
  __device__ WideConvGradient(const T& team, Memory& m) : m(m) { store_after(team, Acc{}); }

  // Stores the weights in shared memory. Rows 0 to 3 apply to the rows of v from 3 rows before the current one to the
  // current one; weights that a shorter kernel lacks are zero. Row 4 is the bias.
  __device__ void load_weights(const T& team) const {
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
      m.weights[row][i % kHead] = x;
    }
  }

  // The lane's four channels of a row in shared memory, where row kMaxHistory is the first of the warp's tile.
  __device__ float* lane_row(const T& team, int row) const {
    return m.rows[team.channel_tile] + (team.row_tile * Memory::kWarpRows + row) * kTile + team.lane % 4 * 4;
  }
  static __device__ void store_row(float* to, const Acc& a, int h) {
    *reinterpret_cast<float4*>(to) = make_float4(a.x[0][2 * h], a.x[0][2 * h + 1], a.x[1][2 * h], a.x[1][2 * h + 1]);
  }
  // The lane's four channels of the gradients of c at the first rows of chunk i.
  __device__ float* lane_first(const T& team, int i) const {
    return m.rows[team.channel_tile] + (T::kRowTiles * Memory::kWarpRows + i % 2 * kMaxHistory) * kTile +
           team.lane % 4 * 4;
  }
  // Stores the gradients of c at the first rows of chunk i.
  __device__ void store_first(const T& team, int i, const Acc& d_c) const {
    const int row = team.lane / 4;
    if (team.row_tile == 0 && row < kMaxHistory) store_row(lane_first(team, i) + row * kTile, d_c, 0);
  }

  // Stores the gradients of c at the rows after the segment.
  __device__ void store_after(const T& team, const Acc& d_c) const {
    const int row = team.lane / 4;
    if (team.row_tile > 0 || row >= kMaxHistory) return;
    store_row(lane_first(team, team.chunks()) + row * kTile, d_c, 0);
    // If the last chunk has only the first row tile, its second one has no gradients of its own, and these follow.
    if (T::kRowTiles > 1 && team.chunk(team.chunks() - 1).n <= kTile)
      store_row(lane_row(team, Memory::kWarpRows + kMaxHistory + row), d_c, 0);
  }

  // Adds a row in shared memory, times w, to row h of the lane's.
  static __device__ void add_row(Acc& sum, const LaneChannels& w, const float* row, int h) {
    const LaneChannels x = load_channels(row);
#pragma unroll
    for (int e = 0; e < 4; ++e) sum.x[e / 2][2 * h + e % 2] += w.x[e / 2][e % 2] * x.x[e / 2][e % 2];
  }
  __device__ LaneChannels weight(const T& team, int i) const { return load_channels(m.weights[i] + team.channel()); }

  // Loads the kMaxHistory values before row `row` of the segment, where lanes hold the last rows of a tile.
  __device__ LaneRows<E> load_history(const T& team, int row) const {
    const RelaPlan& p = team.p;
    LaneRows<E> history;
    const int back = 8 - team.lane / 4;  // rows before `row`
    if (back > kMaxHistory) return history;
    const int before = back - row - team.unit.rows_before;  // rows before the sequence begins, if positive
    if (before <= 0) {
      load_lane_row(history, 1,
                    team.moved(team.template first_row<Matrices::kV>(), row - back, static_cast<int>(p.v.stride)));
    } else if (p.initial_history) {
      if (before < p.kernel_size)
        load_lane_row(history, 1,
                      static_cast<const E*>(p.initial_history) +
                          ((team.segment.sequence + 1) * (p.kernel_size - 1) - before) * p.width() +
                          team.head_channel() + team.channel());
    }
    return history;
  }

  // From values v of a tile, the tile before it, and the gradient `a` of SiLU(c), computes SiLU(c) and the gradient of
  // c.
  __device__ Acc convolve(const T& team, const Acc& v, const Acc& before, const Acc& a, Acc& d_c) const {
    const int row = team.lane / 4;
    if (row >= 8 - kMaxHistory) store_row(lane_row(team, row - (8 - kMaxHistory)), before, 1);
#pragma unroll
    for (int h = 0; h < 2; ++h) store_row(lane_row(team, kMaxHistory + row + 8 * h), v, h);
    __syncwarp();
    // Reading weights and rows again is cheaper than holding the registers.
    Acc c = equal_rows(weight(team, kMaxKernelSize));
#pragma unroll
    for (int i = 0; i < kMaxKernelSize; ++i) {
      if (i % 2) __syncwarp();  // keeps the compiler from loading all rows ahead
      const LaneChannels w = weight(team, i);
#pragma unroll
      for (int h = 0; h < 2; ++h) add_row(c, w, lane_row(team, row + 8 * h + i), h);
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      float& x = c.x[i / 4][i % 4];
      const float s = sigmoid(x), y = x * s;
      d_c.x[i / 4][i % 4] = a.x[i / 4][i % 4] * silu_grad(s, y);
      x = y;
    }
    return c;
  }
  // Prepares the gradients of c at the rows after the segment's last chunk, by the warps of the first row tile.
  __device__ void prepare(const T& team, const Acc& v, const Acc& before, const Acc& a) const {
    Acc d_c;
    convolve(team, v, before, a, d_c);
    store_after(team, d_c);
    __syncwarp();
  }
  // Computes SiLU(c) of the warp's tile in chunk i, and stores the gradients of c, which the functions below read after
  // a barrier.
  __device__ Acc step(const T& team, const Acc& v, const Acc& before, const Acc& a, int i) const {
    const int row = team.lane / 4;
    Acc d_c;
    const Acc c = convolve(team, v, before, a, d_c);
    __syncwarp();
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      store_row(lane_row(team, kMaxHistory + row + 8 * h), d_c, h);
      if constexpr (Memory::kKeepsValues)
        store_row(m.values[threadIdx.x / 32] + (row + 8 * h) * kTile + team.lane % 4 * 4, v, h);
    }
    store_first(team, i, d_c);
    return c;
  }
  // Adds the gradient of the values of the warp's tile in chunk i, after a barrier.
  __device__ void add_gradient(const T& team, Acc& d_v, int i) const {
    const int row = team.lane / 4;
    // Rows after the tile are kMaxHistory rows further if the next row tile follows, or in one of the last groups.
    const bool last = team.row_tile == T::kRowTiles - 1;
    const int gap = (last ? (i + 1) % 2 : 1) * (kMaxHistory * kTile);
#pragma unroll
    for (int k = 0; k < kMaxKernelSize; ++k) {
      if (k % 2) __syncwarp();
      const LaneChannels w = weight(team, kMaxHistory - k);
      add_row(d_v, w, lane_row(team, kMaxHistory + row + k), 0);
      add_row(d_v, w, lane_row(team, kMaxHistory + 8 + row + k) + (row + k >= 8 ? gap : 0), 1);
    }
  }

  // Adds the gradients of the weights and the bias from the warp's tile, whose values are in `values` at 16 bits.
  __device__ void add_weights(const T& team, const E* values) {
    const int lane = team.lane, channel = lane % kTile, first = lane / kTile * 8;  // of eight rows
    const float* const tile = lane_row(team, 0) - lane % 4 * 4 + channel;
    const float* const d_c = tile + computed_here((kMaxHistory + first) * kTile);
    // Column of the channel in `values` (lane_rows.cuh).
    const int column = Memory::kKeepsValues ? channel : channel / 4 * 2 + channel % 2 + channel / 2 % 2 * 8;
    const int straight = computed_here(first * kTile + column);
    auto value = [&](int row, int at) {
      if constexpr (Memory::kKeepsValues) return m.values[threadIdx.x / 32][row * kTile + at];
      return to_float(values[row * kTile + (row & 4 ? at ^ 8 : at)]);  // swizzled
    };
    float x[kMaxHistory + 1];
#pragma unroll
    for (int k = 0; k < kMaxHistory; ++k) {
      // The rows before the first eight are not in the tile. Loading both numbers takes no branch.
      const float before = tile[k * kTile], inside = value(8 - kMaxHistory + k, column);
      x[k] = first == 0 ? before : inside;
    }
#pragma unroll
    for (int row = 0; row < 8; ++row) {
      if (row % 4 == 0) __syncwarp();
      x[kMaxHistory] = value(row, straight);
      const float d = d_c[row * kTile];
#pragma unroll
      for (int k = 0; k < kMaxKernelSize; ++k) sums[k] += d * x[k];
      sums[kMaxKernelSize] += d;
#pragma unroll
      for (int k = 0; k < kMaxHistory; ++k) x[k] = x[k + 1];
    }
  }

  // Adds the gradient of the final history to the last values of the sequence, at a tile that begins at row `first` of
  // the segment.
  __device__ void add_final_gradient(const T& team, Acc& d_v, int first) const {
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

  // Stores the gradients of the weights and the bias, summed over the warps of the same channels. All warps of the team
  // call it, after a barrier.
  __device__ void store_weights(const T& team) {
    const RelaPlan& p = team.p;
    float* const parts = m.rows[team.channel_tile] + team.lane;
#pragma unroll
    for (int i = 0; i <= kMaxKernelSize; ++i) {
      sums[i] += __shfl_xor_sync(0xffffffffu, sums[i], kTile);
      if (team.row_tile > 0 && team.lane < kTile) parts[(team.row_tile * (kMaxKernelSize + 1) + i) * kTile] = sums[i];
    }
    if constexpr (T::kRowTiles > 1) {
      __syncthreads();
    }
    if (team.row_tile > 0 || team.lane >= kTile) return;
    float* const out =
        p.conv_partials +
        (team.segment.slot * p.width() + team.head_channel() + team.own() + team.lane) * (kMaxKernelSize + 1);
#pragma unroll
    for (int i = 0; i <= kMaxKernelSize; ++i) {
      float sum = sums[i];
#pragma unroll
      for (int r = 1; r < T::kRowTiles; ++r) sum += parts[(r * (kMaxKernelSize + 1) + i) * kTile];
      out[i] = sum;
    }
  }

  // Stores the gradient of the initial history, from the gradients of c at the sequence's first rows.
  __device__ void store_initial_history(const T& team) const {
    if (team.row_tile > 0) return;
    const RelaPlan& p = team.p;
    const float* const first = lane_first(team, 0) - team.lane % 4 * 4;
    const E* const d_final_history = static_cast<const E*>(p.d_final_history);
    const int history = p.kernel_size - 1;
    __syncwarp();
    for (int i = team.lane; i < history * kTile; i += 32) {
      const int back = i / kTile + 1, column = i % kTile;  // rows before the first of the sequence
      float d = 0.f;
      for (int s = back; s <= history; ++s)
        d += m.weights[kMaxHistory - s][team.own() + column] * first[(s - back) * kTile + column];
      const int64_t channel = team.head_channel() + team.own() + column;
      const int64_t last = history - back - team.segment.length(), base = team.segment.sequence * history;
      if (d_final_history && last >= 0) d += to_float(d_final_history[(base + last) * p.width() + channel]);
      static_cast<E*>(p.d_initial_history)[(base + history - back) * p.width() + channel] = from_float<E>(d);
    }
  }
};

}  // namespace recgrela::cuda
