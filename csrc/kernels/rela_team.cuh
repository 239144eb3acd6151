// What the kernels of gated_rela share: the plan of a call, the cut of sequences into segments, and the team of warps
// that takes one head of one segment in chunks of 16 tokens.
//
// A team has a warp for each 16 channels of the head. A warp owns its 16 value channels and the key channels of the
// same numbers. Heads of up to 16 channels have teams of one warp, four in a block, which never wait for each other.
#pragma once

#include "kernels/params.h"
#include "kernels/sequences.cuh"
#include "kernels/tile.cuh"

namespace recgrela::cuda {

constexpr int kHalo = 3;  // rows before a chunk that the convolution needs, at most
constexpr int kMaxTaps = 4;
constexpr int kMostFused = 64;  // the widest head whose backward is one kernel

// A call's parameters and what the host makes of them.
struct RelaPlan : GatedRelaParams {
  bool cut = false;               // sequences may have more than one segment
  int64_t num_slots = 0;          // places for segments; not all are taken
  float* key_state = nullptr;     // [slots, H, d + 1, d] sums of R phi(k) (x) v and phi(k)
  float* query_state = nullptr;   // likewise of R phi(q) (x) (gradient of the numerator) and d(denominator) phi(q)
  float* row_scales = nullptr;    // [T, H, 2] of each chunk's count n: n / denominator, n d(denominator)
  float* conv_partial = nullptr;  // [slots, D, 5] gradients of the taps (the last one last) and the bias
  bool queries = false;           // the sums kernel makes query_state, else key_state
  bool second = false;            // the second of the backward's launches

  __host__ __device__ int64_t state_size() const { return int64_t{head_dim} * (head_dim + 1); }
  __host__ __device__ int64_t width() const { return int64_t{num_heads} * head_dim; }
};

// Rows of one sequence that a team takes. Segments of sequence b have the slots offset(b) / segment_rows + b + 0, 1 ..:
// no two share one, and no list needs to be made.
struct Segment {
  int64_t sequence, row0, length;  // row0: the sequence's first
  int64_t begin, end;              // rows of the sequence
  int64_t index, count;            // among the sequence's segments
  int64_t slot;
};

// Of sequence b, or a later one.
inline __device__ int64_t first_slot(const RelaPlan& p, int64_t b) {
  return sequence_rows(p.sequences, b).begin / p.segment_rows + b;
}

// All lanes of the warp take part. False: the slot is not taken.
inline __device__ bool find_segment(const RelaPlan& p, int64_t slot, Segment& segment) {
  int64_t b = slot;
  if (p.cut) {
    // The last b whose first slot is not after ours: 32 places at a time.
    int64_t low = 0, size = p.sequences.count;
    while (size > 1) {
      const int64_t step = (size + 31) / 32, probe = low + step * (threadIdx.x % 32);
      const bool before = probe < low + size && first_slot(p, probe) <= slot;
      const int found = __popc(__ballot_sync(0xffffffffu, before));
      const int64_t next = low + step * (found > 0 ? found - 1 : 0);
      size = step < low + size - next ? step : low + size - next;
      low = next;
    }
    b = low;
  }
  const RowRange rows = sequence_rows(p.sequences, b);
  segment.sequence = b, segment.slot = slot;
  segment.row0 = rows.begin, segment.length = rows.end - rows.begin;
  segment.index = 0, segment.count = 1;
  segment.begin = 0, segment.end = segment.length;
  if (p.cut) {
    segment.index = slot - first_slot(p, b);
    if (segment.length > 0) segment.count = (segment.length + p.segment_rows - 1) / p.segment_rows;
    segment.begin = segment.index * p.segment_rows;
    if (segment.index + 1 < segment.count) segment.end = segment.begin + p.segment_rows;
  }
  return segment.index < segment.count;
}

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

  // Rows before the sequence's first, in a state that went before.
  __device__ int64_t rows_before() const { return p.initial_count ? p.initial_count[segment.sequence] : 0; }

  // By how much the sums of a chunk are divided where they would outgrow 16 bits, and as float32.
  __device__ float chunk_count(int64_t t0) const {
    return static_cast<float>(p.causal ? rows_before() + t0 + kTile : segment.length);
  }

  // Starts to copy rows first .. 15 of the chunk at t0 to tile - first * kStride ...; zeros beyond `end` rows of the
  // sequence and, but for `before`, the rows [kHalo, D] that end where the sequence begins, in front of it.
  __device__ void copy_rows(E* tile, const Rows& rows, int64_t t0, int64_t end, int first = 0,
                            const E* before = nullptr, int before_rows = 0) const {
    constexpr int kVector = 16 / sizeof(E), kVectors = kHead / kVector;
    const E* const data = static_cast<const E*>(rows.data) + head_channel();
    for (int i = thread + first * kVectors; i < kTile * kVectors; i += 32 * kWarps) {
      // i may be negative, a multiple of kVectors at least
      const int row = (i + kHalo * kVectors) / kVectors - kHalo, column = (i + kHalo * kVectors) % kVectors * kVector;
      const int64_t t = t0 + row;
      const bool in_head = column < p.head_dim;
      const E* source = data + (segment.row0 + t) * rows.stride + column;
      bool valid = in_head && t >= 0 && t < end;
      if (t < 0 && t >= -before_rows && in_head) {
        source = before + (before_rows + t) * p.width() + head_channel() + column;
        valid = true;
      }
      copy_async16(tile + row * kStride + column, valid ? source : rows.data, valid);
    }
  }

  // The rows of the values in the chunk at t0 and kHalo rows before it.
  __device__ void copy_values(E* tile, int64_t t0, int64_t end) const {
    const int before = p.initial_values ? p.conv_width - 1 : 0;
    const E* const initial = static_cast<const E*>(p.initial_values);
    copy_rows(tile, p.v, t0, end, -kHalo, initial ? initial + segment.sequence * before * p.width() : nullptr, before);
  }

  // phi(x) of the chunk's first n rows to f, R phi(x) in place of x; zeros in the other rows.
  __device__ void features(E* x, E* f, int64_t t0, int n) const {
    constexpr int kQuads = kHead / 4;
    const float* const angles = p.rotary ? p.rotary + (rows_before() + t0) * p.width() + head_channel() : nullptr;
#pragma unroll
    for (int i = 0; i < kTile * kQuads / (32 * kWarps); ++i) {
      const int index = thread + i * 32 * kWarps, row = index / kQuads, column = index % kQuads * 4;
      float4 y = load4(x + row * kStride + column), r;
      if (row < n && column < p.head_dim) {
        y = make_float4(phi(y.x), phi(y.y), phi(y.z), phi(y.w));
        r = y;
        if (angles) {
          const float4 a = *reinterpret_cast<const float4*>(angles + row * p.width() + column);
          r = make_float4(y.x * a.x - y.y * a.y, y.x * a.y + y.y * a.x, y.z * a.z - y.w * a.w, y.z * a.w + y.w * a.z);
        }
      } else {
        y = r = make_float4(0.f, 0.f, 0.f, 0.f);
      }
      store4(f + row * kStride + column, y);
      store4(x + row * kStride + column, r);
    }
  }

  // In place of dy: dy * SiLU(g), times its row's scale if there are scales (stride 2). g may be null.
  __device__ void gate_gradient(E* out, const E* dy, const E* g, const float* scales) const {
    constexpr int kQuads = kHead / 4;
#pragma unroll
    for (int i = 0; i < kTile * kQuads / (32 * kWarps); ++i) {
      const int index = thread + i * 32 * kWarps, row = index / kQuads, column = index % kQuads * 4;
      float4 a = load4(dy + row * kStride + column);
      if (g) {
        const float4 x = load4(g + row * kStride + column);
        a = make_float4(a.x * x.x * sigmoid(x.x), a.y * x.y * sigmoid(x.y), a.z * x.z * sigmoid(x.z),
                        a.w * x.w * sigmoid(x.w));
      }
      if (scales) {
        const float s = scales[2 * row];
        a = make_float4(a.x * s, a.y * s, a.z * s, a.w * s);
      }
      store4(out + row * kStride + column, a);
    }
  }

  // The chunk's row scales, [16, 2], zero behind its n rows, to shared memory.
  __device__ void load_scales(float* scales, int64_t t0, int n) const {
    for (int i = thread; i < 2 * kTile; i += 32 * kWarps)
      scales[i] = i / 2 < n ? p.row_scales[((segment.row0 + t0 + i / 2) * p.num_heads + head) * 2 + i % 2] : 0.f;
  }

  // The taps, [kHead, 5]: the one of the current row last, then the bias. To shared memory.
  __device__ void load_taps(float* taps) const {
    const E* const weight = static_cast<const E*>(p.conv_weight);
    const E* const bias = static_cast<const E*>(p.conv_bias);
    for (int i = thread; i < kHead * (kMaxTaps + 1); i += 32 * kWarps) {
      const int channel = i / (kMaxTaps + 1), tap = i % (kMaxTaps + 1);
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

  // bias + sum_w tap_w v[row - 3 + w] for two neighbouring channels
  __device__ float2 convolve(const E* v, const float* taps, int row, int column) const {
    const float* const w = taps + column * (kMaxTaps + 1);
    float2 c = make_float2(w[kMaxTaps], w[2 * kMaxTaps + 1]);
#pragma unroll
    for (int i = 0; i < kMaxTaps; ++i) {
      const float2 x = load2(v + (row - kHalo + i) * kStride + column);
      c.x += w[i] * x.x, c.y += w[kMaxTaps + 1 + i] * x.y;
    }
    return c;
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
  __device__ static RowVector row_vector(const float* shared, int tile, int lane, int stride = 1) {
    RowVector row;
#pragma unroll
    for (int i = 0; i < 4; ++i) row.x[i] = shared[(tile * kTile + tile_col(lane, i / 2, i % 2)) * stride];
    return row;
  }

 private:
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

// R^-1 of a pair at position t
template <typename E, int kHead>
__device__ float2 rotate_back(const Team<E, kHead>& team, float2 x, int64_t t, int column) {
  if (!team.p.rotary) return x;
  const float2 a = *reinterpret_cast<const float2*>(team.p.rotary + (team.rows_before() + t) * team.p.width() +
                                                    team.head_channel() + column);
  return make_float2(x.x * a.x + x.y * a.y, x.y * a.x - x.x * a.y);
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

// The kernels of one element type; each launches what the plan asks for.
template <typename E>
struct RelaKernels {
  static cudaError_t sums(const RelaPlan& plan, cudaStream_t stream);
  static cudaError_t forward(const RelaPlan& plan, cudaStream_t stream);
  static cudaError_t backward(const RelaPlan& plan, cudaStream_t stream);
};

}  // namespace recgrela::cuda
