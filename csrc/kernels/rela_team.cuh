// What the kernels of gated_rela share: the team of warps that takes one head of one segment in chunks of 16 tokens.
//
// A team has a warp for each 16 channels of the head. A warp owns its 16 value channels and the key channels of the
// same numbers. Heads of up to 16 channels have teams of one warp, four in a block, which never wait for each other.
#pragma once

#include "kernels/rela_plan.cuh"

namespace recgrela::cuda {

template <typename E, int kHead>
struct Team {
  static constexpr int kTiles = kHead / kTile;
  static constexpr int kWarps = kTiles;
  static constexpr int kTeams = kWarps == 1 ? 4 : 1;  // in a block
  static constexpr int kThreads = 32 * kWarps * kTeams;
  // A row's length in shared memory: 16 bytes more than needed, so that a tile's rows lie in different banks.
  static constexpr int kStride = kHead + 16 / static_cast<int>(sizeof(E));
  static constexpr int kTileSize = kTile * kStride;
  static constexpr int kHaloSize = kHalo * kStride;
  // Blocks to a multiprocessor that the compiler leaves registers for: as many as it can without spilling.
  static constexpr int kForwardBlocks = kHead == 32 ? 8 : kHead == 128 ? 1 : 512 / kThreads - (kHead == 64);
  static constexpr int kBackwardBlocks = kHead == 32 ? 6 : kHead == 128 ? 1 : kHead == 64 ? 2 : 3;
  static constexpr int kStages = kHead == 128 ? 1 : 2;  // one leaves enough registers and shared memory

  const RelaPlan& p;
  const Segment& segment;  // in shared memory, to leave registers free
  int warp, lane, thread;  // in the team
  int head = 0;

  __device__ Team(const RelaPlan& p, const Segment& segment)
      : p(p),
        segment(segment),
        warp(threadIdx.x / 32 % kWarps),
        lane(threadIdx.x % 32),
        thread(threadIdx.x % (32 * kWarps)) {}

  __host__ __device__ static int64_t blocks(const RelaPlan& p) {
    return p.num_slots * ((p.num_heads + kTeams - 1) / kTeams);
  }

  // Finds the team's work by the block's number and puts it where `segment` is. False: there is none.
  __device__ bool find_work(Segment& out) {
    const int groups = (p.num_heads + kTeams - 1) / kTeams;
    const int64_t slot = blockIdx.x / groups;
    head = static_cast<int>(blockIdx.x % groups) * kTeams + static_cast<int>(threadIdx.x) / (32 * kWarps);
    Segment found;
    const bool any = find_segment(p, slot, found) && head < p.num_heads;
    if (thread == 0) out = found;
    sync();
    return any;
  }

  __device__ void sync() const {
    if constexpr (kWarps == 1)
      __syncwarp();
    else
      __syncthreads();
  }

  __device__ int own() const { return warp * kTile; }  // the first of the warp's own channels
  __device__ int64_t head_channel() const { return int64_t{head} * p.head_dim; }

  __device__ float* state(float* states) const { return states + (segment.slot * p.num_heads + head) * p.state_size(); }
  template <typename S>
  __device__ S* sequence_state(S* states) const {
    return states + (segment.sequence * p.num_heads + head) * p.state_size();
  }

  // By how much the sums of a chunk are divided where they would outgrow 16 bits, and as float32.
  __device__ float chunk_count(int64_t t0) const {
    return static_cast<float>(p.causal ? segment.before + t0 + kTile : segment.length);
  }

  // Whether a channel of the padded head is one.
  __device__ bool in_head(int channel) const { return kHead > kTile || channel < p.head_dim; }

  // Starts to copy kRows rows of the head to a tile; zeros but for the rows begin .. end - 1.
  template <int kRows>
  __device__ void copy_rows(E* tile, const E* rows, int stride, int begin, int end) const {
    constexpr int kVector = 16 / sizeof(E), kVectors = kHead / kVector, kStep = 32 * kWarps / kVectors;
    int row = thread / kVectors;
    const int column = thread % kVectors * kVector;
    const E* source = rows + row * stride + column;
#pragma unroll
    for (int i = 0; i < (kRows + kStep - 1) / kStep; ++i) {
      const bool valid = row >= begin && row < end && in_head(column);
      if (kRows % kStep == 0 || row < kRows)
        copy_async16(tile + row * kStride + column, valid ? source : p.v.data, valid);
      row += kStep, source += kStep * stride;
    }
  }

  // The chunk at t0, zeros behind the sequence's end.
  __device__ void copy_chunk(E* tile, const Rows& rows, int64_t t0) const {
    const int64_t left = segment.length - t0;
    copy_rows<kTile>(tile, static_cast<const E*>(rows.data) + (segment.row0 + t0) * rows.stride + head_channel(),
                     static_cast<int>(rows.stride), 0, left < kTile ? static_cast<int>(left) : kTile);
  }

  // The values in the chunk at t0 and in the kHalo rows before it, which may be a state's.
  __device__ void copy_values(E* tile, int64_t t0) const {
    copy_chunk(tile, p.v, t0);
    if (p.conv_width == 0) return;
    const E* rows = static_cast<const E*>(p.v.data) + head_channel();
    int64_t stride = p.v.stride;
    int begin = kHalo;  // zeros
    if (t0 > 0) {
      begin = 0, rows += (segment.row0 + t0 - kHalo) * stride;
    } else if (p.initial_values) {
      const int history = p.conv_width - 1;
      begin = kHalo - history, stride = p.width();
      rows = static_cast<const E*>(p.initial_values) + segment.sequence * history * stride + head_channel();
      rows -= begin * stride;
    }
    copy_rows<kHalo>(tile - kHaloSize, rows, static_cast<int>(stride), begin, kHalo);
  }

  // Visits each thread's share of a tile: f(row, channel) for four neighbouring channels from `channel` on.
  template <typename F>
  __device__ void for_each_quad(F f) const {
    constexpr int kQuads = kHead / 4;
    static_assert(32 * kWarps / kQuads == 8, "rows at a time");
    // Rows are taken in an order in which those that are accessed together lie in different banks.
    int row = thread / kQuads;
    if constexpr (kHead * sizeof(E) == 32) row = row % 4 * 2 + row / 4;
    if constexpr (kHead * sizeof(E) == 64) row = row % 2 * 4 + row / 2;
    f(row, thread % kQuads * 4);
    f(row + 8, thread % kQuads * 4);
  }

  // phi(x) of the chunk's first n rows to f, R phi(x) in place of x, zeros in the other rows; and the same of x2.
  // Null: not there.
  __device__ void features(int64_t t0, int n, E* x, E* f, E* x2 = nullptr, E* f2 = nullptr) const {
    const int width = static_cast<int>(p.width());
    const float* const table = p.rotary ? p.rotary + (segment.before + t0) * width + head_channel() : nullptr;
    for_each_quad([&](int row, int channel) {
      const bool inside = row < n && in_head(channel);
      float4 angles = make_float4(1.f, 0.f, 1.f, 0.f);
      if (table && inside) angles = *reinterpret_cast<const float4*>(table + row * width + channel);
      features_of(x, f, row * kStride + channel, inside, angles);
      if (x2) features_of(x2, f2, row * kStride + channel, inside, angles);
    });
  }

  // In place of dy: dy * SiLU(g), times its row's scale (stride 2); g may be null.
  __device__ void gate_gradient(E* dy, const E* g, const float* scales) const {
    for_each_quad([&](int row, int channel) {
      const int place = row * kStride + channel;
      const float s = scales[2 * row];
      float4 a = load4(dy + place);
      if (g) {
        const float4 x = load4(g + place);
        a = make_float4(a.x * x.x * sigmoid(x.x), a.y * x.y * sigmoid(x.y), a.z * x.z * sigmoid(x.z),
                        a.w * x.w * sigmoid(x.w));
      }
      store4(dy + place, make_float4(a.x * s, a.y * s, a.z * s, a.w * s));
    });
  }

  // The chunk's row scales, [16, 2], zero behind its n rows, to shared memory.
  __device__ void load_scales(float* scales, int64_t t0, int n) const {
    for (int i = thread; i < 2 * kTile; i += 32 * kWarps)
      scales[i] = i / 2 < n ? p.row_scales[((segment.row0 + t0 + i / 2) * p.num_heads + head) * 2 + i % 2] : 0.f;
  }

  // The taps, [5, kHead]: that of the current row is the fourth; then the bias. To shared memory.
  __device__ void load_taps(float* taps) const {
    const E* const weight = static_cast<const E*>(p.conv_weight);
    const E* const bias = static_cast<const E*>(p.conv_bias);
    for (int i = thread; i < kHead * (kMaxTaps + 1); i += 32 * kWarps) {
      const int channel = i % kHead, tap = i / kHead;
      const int w = tap - (kMaxTaps - p.conv_width);
      float x = 0.f;
      if (p.conv_width > 0 && channel < p.head_dim) {
        if (tap == kMaxTaps)
          x = to_float(bias[head_channel() + channel]);
        else if (w >= 0)
          x = to_float(weight[(head_channel() + channel) * p.conv_width + w]);
      }
      taps[i] = x;
    }
  }

  // bias + sum_w tap_w v[row - 3 + w] at this lane's places of the own channels
  __device__ void convolve(Acc& c, const E* v, const float* taps) const {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int column = own() + tile_col(lane, j, 0);
      float2 w[kMaxTaps + 1];
#pragma unroll
      for (int i = 0; i <= kMaxTaps; ++i) w[i] = load2(taps + i * kHead + column);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const E* const rows = v + (tile_row(lane, 2 * h) - kHalo) * kStride + column;
        c.x[j][2 * h] = w[kMaxTaps].x, c.x[j][2 * h + 1] = w[kMaxTaps].y;
#pragma unroll
        for (int i = 0; i < kMaxTaps; ++i) {
          const float2 x = load2(rows + i * kStride);
          c.x[j][2 * h] += w[i].x * x.x, c.x[j][2 * h + 1] += w[i].y * x.y;
        }
      }
    }
  }

  // This lane's places of the own channels in a tile: f(row, channel, j, e) for the pairs x[j][e], x[j][e + 1].
  template <typename F>
  __device__ void for_each_pair(F f) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) f(tile_row(lane, i % 2 * 2), own() + tile_col(lane, i / 2, 0), i / 2, i % 2 * 2);
  }
  __device__ void load_pairs(Acc& a, const E* tile) const {
    for_each_pair([&](int row, int channel, int j, int e) {
      const float2 x = load2(tile + row * kStride + channel);
      a.x[j][e] = x.x, a.x[j][e + 1] = x.y;
    });
  }
  __device__ void store_pairs(E* tile, const Acc& a) const {
    for_each_pair(
        [&](int row, int channel, int j, int e) { store2(tile + row * kStride + channel, a.x[j][e], a.x[j][e + 1]); });
  }
  // To the first n rows of the chunk at t0.
  __device__ void store_pairs(const Rows& rows, int64_t t0, int n, const Acc& a) const {
    E* const out = static_cast<E*>(rows.data) + (segment.row0 + t0) * rows.stride + head_channel();
    const int stride = static_cast<int>(rows.stride);
    // Two lanes give each other a pair, so that each stores four neighbours.
    const bool odd = lane % 2;
    const int channel = own() + tile_col(lane & ~1, odd, 0);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float* const x = a.x[0] + 2 * h;
      const float* const y = a.x[1] + 2 * h;
      const float2 kept = odd ? make_float2(y[0], y[1]) : make_float2(x[0], x[1]);
      float2 other = odd ? make_float2(x[0], x[1]) : make_float2(y[0], y[1]);
      other = exchange<E>(other);
      const float4 quad =
          odd ? make_float4(other.x, other.y, kept.x, kept.y) : make_float4(kept.x, kept.y, other.x, other.y);
      const int row = tile_row(lane, 2 * h);
      if (row < n && in_head(channel)) store4(out + row * stride + channel, quad);
    }
  }

  // States as sums: of own value channels by all key channels, of own key channels by all value channels, and of own
  // key channels. A missing state is zero.
  __device__ void load_state(const float* state, Acc (&by_value)[kTiles]) const {
    visit(by_value, [&](float& x, int value, int key) { x = state ? state[key * p.head_dim + value] : 0.f; });
  }
  __device__ void load_state_by_key(const float* state, Acc (&by_key)[kTiles]) const {
    visit(by_key, [&](float& x, int key, int value) { x = state ? state[key * p.head_dim + value] : 0.f; });
  }
  __device__ void store_state(float* state, Acc (&by_value)[kTiles]) const {
    visit(by_value, [&](float& x, int value, int key) { state[key * p.head_dim + value] = x; });
  }
  __device__ void load_sum(const float* state, RowVector& sum) const {
    visit(sum, [&](float& x, int key) { x = state ? state[p.head_dim * p.head_dim + key] : 0.f; });
  }
  __device__ void store_sum(float* state, RowVector& sum) const {
    if (lane < 4) visit(sum, [&](float& x, int key) { state[p.head_dim * p.head_dim + key] = x; });
  }
  // to shared memory, [kHead]
  __device__ void publish(float* shared, RowVector& sum) const {
    if (lane >= 4) return;
#pragma unroll
    for (int i = 0; i < 4; ++i) shared[own() + tile_col(lane, i / 2, i % 2)] = sum.x[i];
  }
  // This lane's four of 16 numbers.
  __device__ RowVector row_vector(const float* shared, int stride = 1) const {
    RowVector row;
#pragma unroll
    for (int i = 0; i < 4; ++i) row.x[i] = shared[tile_col(lane, i / 2, i % 2) * stride];
    return row;
  }

 private:
  __device__ static void features_of(E* x, E* f, int place, bool inside, const float4& a) {
    float4 y = load4(x + place);
    y = make_float4(phi(y.x), phi(y.y), phi(y.z), phi(y.w));
    if (!inside) y = make_float4(0.f, 0.f, 0.f, 0.f);
    store4(f + place, y);
    store4(x + place,
           make_float4(y.x * a.x - y.y * a.y, y.x * a.y + y.y * a.x, y.z * a.z - y.w * a.w, y.z * a.w + y.w * a.z));
  }

  template <typename F>
  __device__ void visit(Acc (&a)[kTiles], F f) const {
#pragma unroll
    for (int t = 0; t < kTiles; ++t)
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const int row = own() + tile_row(lane, i % 4), column = t * kTile + tile_col(lane, i / 4, i % 4);
        if (row < p.head_dim && column < p.head_dim) f(a[t].x[i / 4][i % 4], row, column);
      }
  }
  template <typename F>
  __device__ void visit(RowVector& a, F f) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int key = own() + tile_col(lane, i / 2, i % 2);
      if (key < p.head_dim) f(a.x[i], key);
    }
  }
};

// The team's part of the block's shared memory.
template <typename Memory, typename T>
__device__ Memory& team_memory() {
  return reinterpret_cast<Memory*>(dynamic_shared())[threadIdx.x / (32 * T::kWarps)];
}

// A tile of weights [i <= j] or [i >= j] for tokens i, j of a chunk.
inline __device__ void keep_lower(Acc& a, int lane) {
#pragma unroll
  for (int i = 0; i < 8; ++i)
    if (tile_col(lane, i / 4, i % 4) > tile_row(lane, i % 4)) a.x[i / 4][i % 4] = 0.f;
}
inline __device__ void keep_upper(Acc& a, int lane) {
#pragma unroll
  for (int i = 0; i < 8; ++i)
    if (tile_col(lane, i / 4, i % 4) < tile_row(lane, i % 4)) a.x[i / 4][i % 4] = 0.f;
}

// R^-1 at this lane's places of the own channels, for the n rows at t0.
template <typename E, int kHead>
__device__ void rotate_back(const Team<E, kHead>& team, Acc& a, int64_t t0, int n) {
  if (!team.p.rotary) return;
  const int width = static_cast<int>(team.p.width());
  const float* const table = team.p.rotary + (team.segment.before + t0) * width + team.head_channel();
  team.for_each_pair([&](int row, int channel, int j, int e) {
    if (row >= n || !team.in_head(channel)) return;
    const float2 angle = *reinterpret_cast<const float2*>(table + row * width + channel);
    const float x = a.x[j][e], y = a.x[j][e + 1];
    a.x[j][e] = x * angle.x + y * angle.y, a.x[j][e + 1] = y * angle.x - x * angle.y;
  });
}

// Calls use(chunk, stage) for `chunks` chunks in turn, whose copies copy(chunk, stage) started a chunk ahead where
// there are two stages.
template <typename T, typename Copy, typename Use>
__device__ void pipeline(const T& team, int64_t chunks, bool reverse, Copy copy, Use use) {
  auto chunk = [&](int64_t i) { return reverse ? chunks - 1 - i : i; };
  if (chunks > 0) copy(chunk(0), 0);
  copies_commit();
  for (int64_t i = 0; i < chunks; ++i) {
    if constexpr (T::kStages == 2) {
      if (i + 1 < chunks) copy(chunk(i + 1), static_cast<int>((i + 1) % 2));
      copies_commit();
      copies_wait<1>();
    } else {
      copies_wait<0>();
    }
    team.sync();
    use(chunk(i), T::kStages == 2 ? static_cast<int>(i % 2) : 0);
    team.sync();
    if constexpr (T::kStages == 1) {
      if (i + 1 < chunks) copy(chunk(i + 1), 0);
      copies_commit();
    }
  }
  copies_wait<0>();
}

}  // namespace recgrela::cuda
