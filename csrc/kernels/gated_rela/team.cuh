// What the kernels of gated_rela share: the team of warps that takes one head of one segment in chunks of 16 tokens.
//
// A team has a warp for each 16 channels of the head. A warp owns its 16 value channels and the key channels of the
// same numbers. Heads of up to 16 channels have teams of one warp, two in a block, which never wait for each other.
#pragma once

#include "kernels/gated_rela/plan.cuh"

namespace recgrela::cuda {

// From a chunk's rows to the next one's.
inline __device__ int chunk_stride(const RowMatrix& rows) { return kTile * static_cast<int>(rows.stride); }

template <typename E, int kHead>
struct Team {
  static constexpr int kTiles = kHead / kTile;
  static constexpr int kWarps = kTiles;
  static constexpr int kTeams = kWarps == 1 ? 2 : 1;  // in a block
  static constexpr int kThreads = 32 * kWarps * kTeams;
  // A row's length in shared memory: 16 bytes more than needed, so that a tile's rows lie in different banks.
  static constexpr int kStride = kHead + 16 / static_cast<int>(sizeof(E));
  static constexpr int kTileSize = kTile * kStride;
  static constexpr int kHistorySize = kMaxHistory * kStride;
  // Blocks to a multiprocessor that the compiler leaves registers for: as many as it can without spilling.
  static constexpr int kForwardBlocks = kHead == 128 ? 1 : kHead == 64 ? 3 : 8;
  static constexpr int kBackwardBlocks = kHead == 128 ? 1 : kHead == 64 ? 2 : kHead == 32 ? 4 : 6;
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

  __device__ int64_t number() const { return int64_t{blockIdx.x} * kTeams + threadIdx.x / (32 * kWarps); }

  // Finds the team's work by its number and puts it where `segment` is. False: there is none.
  __device__ bool find_work(Segment& out) {
    const int64_t work = p.first_work + number();
    if (work >= p.works()) return false;
    head = static_cast<int>(work % p.num_heads);
    Segment found;
    const bool any = find_segment(p, work / p.num_heads, found);
    if (thread == 0) {
      if (p.chunk_states) {
        const int64_t room = number() * kTiles * kTile;
        found.chunk_states = static_cast<E*>(p.chunk_states) + room * (p.room_chunks + 1) * kHead;
        found.chunk_sums = p.chunk_sums + room * p.room_chunks;
      }
      out = found;
    }
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
  // Whether a channel of the padded head is one.
  __device__ bool in_head(int channel) const { return kHead > kTile || channel < p.head_dim; }

  __device__ int rows() const { return static_cast<int>(segment.end - segment.begin); }
  __device__ int chunks() const { return (rows() + kTile - 1) / kTile; }
  // The sequence's row where the segment's chunk i begins.
  __device__ int64_t first_row(int i) const { return segment.begin + int64_t{i} * kTile; }
  // Of the segment's chunk i, by how much sums are divided where they would outgrow 16 bits: the count of rows up to
  // the chunk's last, or of all.
  __device__ float chunk_count(int i) const {
    if (!p.causal) return static_cast<float>(segment.length);
    return static_cast<float>(segment.before + segment.begin) + static_cast<float>((i + 1) * kTile);
  }

  // ---- copies to shared memory ----

  static constexpr int kVector = 16 / sizeof(E), kVectors = kHead / kVector, kRowsAtOnce = 32 * kWarps / kVectors;

  // Where this thread copies the segment's chunk i from; null where there is nothing.
  __device__ const E* source(const RowMatrix& rows, int i) const {
    if (!rows.data) return nullptr;
    return static_cast<const E*>(rows.data) + (segment.row0 + first_row(i) + thread / kVectors) * rows.stride +
           head_channel() + thread % kVectors * kVector;
  }

  // Starts to copy a chunk of n rows; zeros behind them.
  __device__ void copy_chunk(E* tile, const E* source, const RowMatrix& rows, int n) const {
    const int row = thread / kVectors, column = thread % kVectors * kVector;
    if (!in_head(column)) n = 0;
#pragma unroll
    for (int i = 0; i < kTile; i += kRowsAtOnce)
      copy_async16(tile + (row + i) * kStride + column, source + i * static_cast<int>(rows.stride), row + i < n);
  }

  // The values and the kMaxHistory rows before them, which for the sequence's first chunk are a state's, or zero.
  __device__ void copy_values(E* tile, const E* source, bool first, int n) const {
    copy_chunk(tile, source, p.v, n);
    const int row = thread / kVectors, column = thread % kVectors * kVector;
    if (p.kernel_size == 0 || row >= kMaxHistory) return;
    bool valid = !first;
    source -= kMaxHistory * static_cast<int>(p.v.stride);
    if (first && p.initial_history) {
      const int history = p.kernel_size - 1, place = row - (kMaxHistory - history);
      valid = place >= 0;
      source = static_cast<const E*>(p.initial_history) + (segment.sequence * history + place) * p.width() +
               head_channel() + column;
    }
    copy_async16(tile - kHistorySize + row * kStride + column, source, valid && in_head(column));
  }

  // The taps, [5, kHead]: that of the current row is the fourth; then the bias. To shared memory.
  __device__ void load_taps(float* taps) const {
    const E* const weight = static_cast<const E*>(p.conv_weight);
    const E* const bias = static_cast<const E*>(p.conv_bias);
    for (int i = thread; i < kHead * (kMaxKernelSize + 1); i += 32 * kWarps) {
      const int channel = i % kHead, tap = i / kHead;
      const int w = tap - (kMaxKernelSize - p.kernel_size);
      float x = 0.f;
      if (p.kernel_size > 0 && channel < p.head_dim) {
        if (tap == kMaxKernelSize)
          x = to_float(bias[head_channel() + channel]);
        else if (w >= 0)
          x = to_float(weight[(head_channel() + channel) * p.kernel_size + w]);
      }
      taps[i] = x;
    }
  }

  // ---- this lane's places of the own channels in a tile ----

  // f(row, channel, j, e) for the pairs x[j][e], x[j][e + 1].
  template <typename F>
  __device__ void for_each_pair(F f) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) f(tile_row(lane, i % 2 * 2), own() + tile_col(lane, i / 2, 0), i / 2, i % 2 * 2);
  }
  __device__ void load_pairs(Acc& a, const E* tile) const {
    if constexpr (sizeof(E) == 2) {
      const Operand<E> packed = load_operand<E, false>(tile + own(), kStride);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float2 x = unpack2<E>(packed.r[i]);
        a.x[i / 2][i % 2 * 2] = x.x, a.x[i / 2][i % 2 * 2 + 1] = x.y;
      }
    } else {
      for_each_pair([&](int row, int channel, int j, int e) {
        const float2 x = load2(tile + row * kStride + channel);
        a.x[j][e] = x.x, a.x[j][e + 1] = x.y;
      });
    }
  }
  __device__ void store_pairs(E* tile, const Acc& a) const {
    for_each_pair(
        [&](int row, int channel, int j, int e) { store2(tile + row * kStride + channel, a.x[j][e], a.x[j][e + 1]); });
  }

  // Where this lane stores the segment's chunk i to; null where there is nothing.
  __device__ E* target(const RowMatrix& rows, int i) const {
    if (!rows.data) return nullptr;
    return static_cast<E*>(rows.data) + (segment.row0 + first_row(i) + lane / 4) * rows.stride + head_channel() +
           own() + tile_col(lane & ~1, lane % 2, 0);
  }

  // Stores a chunk of n rows. Two lanes give each other a pair, so that each stores four neighbours of a row.
  __device__ void store_chunk(E* target, const RowMatrix& rows, int n, const Acc& a) const {
    const bool odd = lane % 2;
    if (!in_head(own() + tile_col(lane & ~1, odd, 0))) n = 0;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      E* const out = target + 8 * h * static_cast<int>(rows.stride);
      const bool inside = lane / 4 + 8 * h < n;
      const float* const x = a.x[0] + 2 * h;
      const float* const y = a.x[1] + 2 * h;
      if constexpr (sizeof(E) == 4) {
        const float2 kept = odd ? make_float2(y[0], y[1]) : make_float2(x[0], x[1]);
        const float2 given = odd ? make_float2(x[0], x[1]) : make_float2(y[0], y[1]);
        const float2 other = make_float2(__shfl_xor_sync(0xffffffffu, given.x, 1),  //
                                         __shfl_xor_sync(0xffffffffu, given.y, 1));
        const float4 quad =
            odd ? make_float4(other.x, other.y, kept.x, kept.y) : make_float4(kept.x, kept.y, other.x, other.y);
        if (inside) *reinterpret_cast<float4*>(out) = quad;
      } else {
        const uint32_t first = pack2<E>(x[0], x[1]), second = pack2<E>(y[0], y[1]);
        const uint32_t kept = odd ? second : first;
        const uint32_t other = __shfl_xor_sync(0xffffffffu, odd ? first : second, 1);
        if (inside) *reinterpret_cast<uint2*>(out) = odd ? make_uint2(other, kept) : make_uint2(kept, other);
      }
    }
  }

  // ---- states: [d + 1, d] float32, the sums by key and value channel, then those of keys ----

  __device__ float* state(float* states) const { return states + (segment.slot * p.num_heads + head) * p.state_size(); }
  template <typename S>
  __device__ S* sequence_state(S* states) const {
    return states + (segment.sequence * p.num_heads + head) * p.state_size();
  }

  // As sums of own value channels by all key channels, and of own key channels. A missing state is zero.
  __device__ void load_state(const float* state, Acc (&by_value)[kTiles]) const {
    visit(by_value, [&](float& x, int value, int key) { x = state ? state[key * p.head_dim + value] : 0.f; });
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
  // factor * the sum, to [kHead].
  __device__ void publish(float* place, const RowVector& sum, float factor) const {
    if (lane >= 4) return;
#pragma unroll
    for (int j = 0; j < 2; ++j)
      store2(place + own() + tile_col(lane, j, 0), factor * sum.x[2 * j], factor * sum.x[2 * j + 1]);
  }
  // This lane's four of 16 numbers.
  __device__ RowVector row_vector(const float* numbers) const {
    RowVector row;
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const float2 x = load2(numbers + tile_col(lane, j, 0));
      row.x[2 * j] = x.x, row.x[2 * j + 1] = x.y;
    }
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

// Where a thread copies a chunk's rows from.
template <typename E, int kHead>
struct Sources {
  using T = Team<E, kHead>;
  const E *q, *k, *v, *g, *d_y;

  // The segment's chunk i.
  __device__ void find(const T& team, int i) {
    const RelaPlan& p = team.p;
    q = team.source(p.q, i), k = team.source(p.k, i), v = team.source(p.v, i), g = team.source(p.g, i);
    d_y = team.source(p.d_y, i);
  }
  __device__ void move(const T& team, int chunks) {
    const RelaPlan& p = team.p;
    q += chunks * chunk_stride(p.q), k += chunks * chunk_stride(p.k), v += chunks * chunk_stride(p.v);
    g += chunks * chunk_stride(p.g), d_y += chunks * chunk_stride(p.d_y);
  }
};

// Where a lane stores a chunk's rows to.
template <typename E, int kHead>
struct Target {
  const RowMatrix& rows;
  E* at;

  __device__ Target(const Team<E, kHead>& team, const RowMatrix& rows, int i) : rows(rows), at(team.target(rows, i)) {}
  // Stores n rows, and goes on by so many chunks.
  __device__ void store(const Team<E, kHead>& team, int n, const Acc& a, int chunks) {
    team.store_chunk(at, rows, n, a);
    at += chunks * chunk_stride(rows);
  }
};

// The team's part of the block's shared memory.
template <typename Memory, typename T>
__device__ Memory& team_memory() {
  return reinterpret_cast<Memory*>(dynamic_shared())[threadIdx.x / (32 * T::kWarps)];
}

// Calls use(i, stage) for `chunks` chunks in turn, whose copies copy(i, stage) started a chunk ahead where there are
// two stages.
template <typename T, typename Copy, typename Use>
__device__ void pipeline(const T& team, int chunks, Copy copy, Use use) {
  if (chunks > 0) copy(0, 0);
  copies_commit();
  for (int i = 0; i < chunks; ++i) {
    if constexpr (T::kStages == 2) {
      if (i + 1 < chunks) copy(i + 1, (i + 1) % 2);
      copies_commit();
      copies_wait<1>();
    } else {
      copies_wait<0>();
    }
    team.sync();
    use(i, T::kStages == 2 ? i % 2 : 0);
    team.sync();
    if constexpr (T::kStages == 1) {
      if (i + 1 < chunks) copy(i + 1, 0);
      copies_commit();
    }
  }
  copies_wait<0>();
}

}  // namespace recgrela::cuda
