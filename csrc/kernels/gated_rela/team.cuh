// Team of warps that processes one head of one segment in chunks of 16 rows.
//
// A team has one warp per 16 channels of the head. Each warp owns 16 value channels and the key channels with the same
// indices. Heads of up to 16 channels have teams of one warp, two per block, which never wait for each other.
#pragma once

#include "kernels/gated_rela/plan.cuh"

namespace recgrela::cuda {

template <typename E, int kHead>
struct Team {
  static constexpr int kTiles = kHead / kTile;
  static constexpr int kWarps = kTiles;
  static constexpr int kTeams = kWarps == 1 ? 2 : 1;  // per block
  static constexpr int kThreads = 32 * kWarps * kTeams;
  // Row stride in shared memory: 16 bytes of padding put the rows of a tile in different banks.
  static constexpr int kStride = kHead + 16 / static_cast<int>(sizeof(E));
  static constexpr int kTileSize = kTile * kStride;
  static constexpr int kHistorySize = kMaxHistory * kStride;
  // Blocks per multiprocessor for which the compiler limits registers: the most without spilling.
  static constexpr int kForwardBlocks = kHead == 128 ? 1 : kHead == 64 ? 3 : 8;
  static constexpr int kBackwardBlocks = kHead == 128 ? 1 : kHead == 64 ? 2 : kHead == 32 ? 4 : 6;
  static constexpr int kStages = kHead == 128 ? 1 : 2;  // of the pipeline; two would exhaust registers at 128

  const RelaPlan& p;
  const RelaSegment& segment;  // in shared memory, to save registers
  int warp, lane, thread;      // within the team
  int head = 0;

  __device__ Team(const RelaPlan& p, const RelaSegment& segment)
      : p(p),
        segment(segment),
        warp(threadIdx.x / 32 % kWarps),
        lane(threadIdx.x % 32),
        thread(threadIdx.x % (32 * kWarps)) {}

  __device__ int64_t number() const { return int64_t{blockIdx.x} * kTeams + threadIdx.x / (32 * kWarps); }

  // Finds the head and segment of the team's unit of work and stores the segment in `out`, to which `segment` refers.
  // Returns whether there is a segment.
  __device__ bool find_segment(RelaSegment& out) {
    const int64_t unit = p.first_unit + number();
    if (unit >= p.num_units()) return false;
    head = static_cast<int>(unit % p.num_heads);
    RelaSegment found;
    static_cast<Segment&>(found) = cuda::find_segment(p.segments, unit / p.num_heads);
    const int64_t first = p.initial_position ? p.initial_position[found.sequence] : 0;
    found.position = first + found.begin - found.sequence_begin;
    // The check of sequences, which may come later, refuses positions that are not in the rotary table.
    if (p.rotary && (first < 0 || found.length() > p.rotary_positions - first)) found.count = 0;
    if (thread == 0) {
      if (p.chunk_states) {
        const int64_t offset = number() * kTiles * kTile;
        found.chunk_states = static_cast<E*>(p.chunk_states) + offset * (p.max_chunks + 1) * kHead;
        found.chunk_sums = p.chunk_sums + offset * p.max_chunks;
      }
      out = found;
    }
    sync();
    return found.exists();
  }

  __device__ void sync() const {
    if constexpr (kWarps == 1)
      __syncwarp();
    else
      __syncthreads();
  }

  __device__ int own() const { return warp * kTile; }  // first channel that the warp owns
  __device__ int64_t head_channel() const { return int64_t{head} * p.head_dim; }
  // Returns whether a channel is in the head, not in its padding to a whole tile.
  __device__ bool in_head(int channel) const { return kHead > kTile || channel < p.head_dim; }

  __device__ int rows() const { return static_cast<int>(segment.end - segment.begin); }
  __device__ int chunks() const { return (rows() + kTile - 1) / kTile; }
  // First row of chunk i of the segment.
  __device__ int64_t first_row(int i) const { return segment.begin + int64_t{i} * kTile; }
  // Number of keys that the last row of chunk i attends to. Sums divided by it fit 16-bit types.
  __device__ float num_keys(int i) const {
    if (!p.causal) return static_cast<float>(segment.length());
    return static_cast<float>(segment.position) + static_cast<float>((i + 1) * kTile);
  }

  // ---- copies to shared memory ----

  static constexpr int kVector = 16 / sizeof(E), kVectors = kHead / kVector, kRowsAtOnce = 32 * kWarps / kVectors;

  // First element of chunk i that this thread copies; null if the matrix is absent.
  __device__ const E* source(const RowMatrix& rows, int i) const {
    if (!rows.data) return nullptr;
    return static_cast<const E*>(rows.data) + (first_row(i) + thread / kVectors) * rows.stride + head_channel() +
           thread % kVectors * kVector;
  }

  // Starts copying a chunk of n rows, and zeros after them.
  __device__ void copy_chunk(E* tile, const E* source, const RowMatrix& rows, int n) const {
    const int row = thread / kVectors, column = thread % kVectors * kVector;
    if (!in_head(column)) n = 0;
#pragma unroll
    for (int i = 0; i < kTile; i += kRowsAtOnce)
      copy_async16(tile + (row + i) * kStride + column, source + i * static_cast<int>(rows.stride), row + i < n);
  }

  // Starts copying values and the kMaxHistory rows before them. For the first chunk of a sequence, these are the
  // initial history, or zeros.
  __device__ void copy_values(E* tile, const E* source, bool first, int n) const {
    copy_chunk(tile, source, p.v, n);
    const int row = thread / kVectors, column = thread % kVectors * kVector;
    if (p.kernel_size == 0 || row >= kMaxHistory) return;
    bool valid = !first;
    source -= kMaxHistory * static_cast<int>(p.v.stride);
    if (first && p.initial_history) {
      const int history = p.kernel_size - 1, i = row - (kMaxHistory - history);
      valid = i >= 0;
      source = static_cast<const E*>(p.initial_history) + (segment.sequence * history + i) * p.width() +
               head_channel() + column;
    }
    copy_async16(tile - kHistorySize + row * kStride + column, source, valid && in_head(column));
  }

  // Loads the convolution's weights to shared memory, [5, kHead]. Rows 0 to 3 apply to the rows of v from 3 rows before
  // the current one to the current one; weights that a shorter kernel lacks are zero. Row 4 is the bias.
  __device__ void load_conv_weights(float* conv_weights) const {
    for (int i = thread; i < kHead * (kMaxKernelSize + 1); i += 32 * kWarps) {
      const int channel = i % kHead, row = i / kHead;
      const int k = row - (kMaxKernelSize - p.kernel_size);
      float x = 0.f;
      if (p.kernel_size > 0 && channel < p.head_dim) {
        if (row == kMaxKernelSize)
          x = p.conv_bias[head_channel() + channel];
        else if (k >= 0)
          x = p.conv_weight[(head_channel() + channel) * p.kernel_size + k];
      }
      conv_weights[i] = x;
    }
  }

  // ---- elements of a tile that this lane holds, in the warp's own channels ----

  // Calls f(row, channel, j, e) for the pairs x[j][e], x[j][e + 1].
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

  // First element of chunk i that this lane stores; null if the matrix is absent.
  __device__ E* target(const RowMatrix& rows, int i) const {
    if (!rows.data) return nullptr;
    return static_cast<E*>(rows.data) + (first_row(i) + lane / 4) * rows.stride + head_channel() + own() +
           tile_col(lane & ~1, lane % 2, 0);
  }

  // Stores a chunk of n rows. Two lanes exchange a pair, so that each stores four adjacent elements of a row.
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
        const float2 sent = odd ? make_float2(x[0], x[1]) : make_float2(y[0], y[1]);
        const float2 other = make_float2(__shfl_xor_sync(0xffffffffu, sent.x, 1),  //
                                         __shfl_xor_sync(0xffffffffu, sent.y, 1));
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

  // ---- states, [d + 1, d] float32: sums by key and value channel, then sums by key channel ----

  __device__ float* state(float* states) const { return states + (segment.slot * p.num_heads + head) * p.state_size(); }
  template <typename S>
  __device__ S* sequence_state(S* states) const {
    return states + (segment.sequence * p.num_heads + head) * p.state_size();
  }

  // load_state loads the sums at own value channels and all key channels, load_sum the sums at own key channels. A null
  // state is zero.
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
  // Stores factor * sum to [kHead].
  __device__ void publish(float* out, const RowVector& sum, float factor) const {
    if (lane >= 4) return;
#pragma unroll
    for (int j = 0; j < 2; ++j)
      store2(out + own() + tile_col(lane, j, 0), factor * sum.x[2 * j], factor * sum.x[2 * j + 1]);
  }
  // This lane's four of 16 floats.
  __device__ RowVector row_vector(const float* floats) const {
    RowVector row;
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const float2 x = load2(floats + tile_col(lane, j, 0));
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

}  // namespace recgrela::cuda
