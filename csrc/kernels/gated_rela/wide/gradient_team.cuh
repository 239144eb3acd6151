// Team of warps that computes the gradients of one head of 64 or 128 channels of one segment at a time, in chunks of
// kRows rows.
//
// A warp owns 16 channels of one row tile of every matrix. It loads them, computes all that is elementwise, and stores
// their gradients. The warps that own the same channels share out the states at these value channels by key channels.
// Lanes hold channels as in lane_rows.cuh.
#pragma once

#include "kernels/gated_rela/plan.cuh"
#include "kernels/gated_rela/wide/lane_rows.cuh"
#include "kernels/gated_rela/wide/tiles.cuh"

namespace recgrela::cuda {

// Matrices of the backward.
enum class Matrices { kQ, kK, kV, kG, kDY, kDQ, kDK, kDV, kDG, kCount };

// Unit of work of a team.
struct GradientUnit {
  unsigned index;  // among the units of work
  int head;
  RelaSegment segment;
  // First row of the segment at the first channel of the head, in each matrix and the rotary table.
  void* rows[static_cast<int>(Matrices::kCount)];
  const float* angles;
  int rows_before;  // of the sequence, at most kTile
  float num_keys;   // of the row before the segment's first one if causal, or of every row
};

template <typename E, int kHead>
struct GradientTeam {
  static constexpr int kTiles = kHead / kTile;
  static constexpr int kRowTiles = gradient_row_tiles(sizeof(E), kHead), kRows = kRowTiles * kTile;
  static constexpr int kWarps = kTiles * kRowTiles, kThreads = 32 * kWarps;
  static constexpr int kKeyTiles = kTiles / kRowTiles;  // of a state, that a warp owns
  // Pairs of row tiles (r, c) with c <= r: the tiles of scores within a chunk. Pair (r, c) has index r (r + 1) / 2 + c.
  static constexpr int kPairs = kRowTiles * (kRowTiles + 1) / 2;
  // Blocks per multiprocessor for which the compiler limits registers.
  static constexpr int kBlocks = gradient_blocks(kHead);

  const RelaPlan& p;
  GradientUnit& unit;  // in shared memory, to save registers
  const RelaSegment& segment;
  int channel_tile, row_tile;  // of the warp
  int lane;
  TileLane at;

  __device__ GradientTeam(const RelaPlan& p, GradientUnit& unit)
      : p(p), unit(unit), segment(unit.segment), at(threadIdx.x % 32) {
    find_indices(threadIdx.x);
  }
  // Computes the indices of the thread again: there are too few registers to hold them from one part of a chunk's work
  // to the next.
  __device__ void find_indices(unsigned thread) {
    channel_tile = static_cast<int>(thread / 32 % kTiles);
    row_tile = kRowTiles > 1 ? static_cast<int>(thread / (32 * kTiles)) : 0;
    lane = static_cast<int>(thread % 32), at = TileLane(thread % 32);
    // The compiler would otherwise turn sums into logical operations, from which it does not separate constants.
    if (kRowTiles > 1) row_tile = computed_here(row_tile);
  }

  // Finds unit of work i and stores it in `unit`. Returns whether it has a segment.
  __device__ bool find_unit(unsigned i) {
    const unsigned num_heads = p.num_heads;
    const int head = static_cast<int>(i % num_heads);
    RelaSegment found;
    static_cast<Segment&>(found) = cuda::find_segment(p.segments, i / num_heads);
    const int64_t first = p.initial_position ? p.initial_position[found.sequence] : 0;
    found.position = first + found.begin - found.sequence_begin;
    // The check of sequences, which may come later, refuses positions that are not in the rotary table.
    if (p.rotary && (first < 0 || found.length() > p.rotary_positions - first)) found.count = 0;
    if (threadIdx.x == 0) {
      const int64_t slot = blockIdx.x;
      found.chunk_states = static_cast<E*>(p.chunk_states) + slot * (p.max_chunks + 1) * (kHead * kHead);
      found.chunk_sums = p.chunk_sums + slot * p.max_chunks * (kRowTiles * kHead);
      unit.index = i, unit.head = head, unit.segment = found;
      unit.angles = p.rotary ? p.rotary + (found.position * p.width() + head_channel()) : nullptr;
      unit.rows_before = static_cast<int>(min(found.begin - found.sequence_begin, int64_t{kTile}));
      unit.num_keys = static_cast<float>(p.causal ? found.position : found.length());
#pragma unroll
      for (int m = 0; m < static_cast<int>(Matrices::kCount); ++m) {
        const RowMatrix& rows = matrix(static_cast<Matrices>(m));
        unit.rows[m] = rows.data ? static_cast<E*>(rows.data) + (found.begin * rows.stride + head_channel()) : nullptr;
      }
    }
    __syncthreads();
    return found.exists();
  }

  __device__ int own() const { return channel_tile * kTile; }      // first channel that the warp owns
  __device__ int channel() const { return own() + lane % 4 * 4; }  // first of the lane's four channels
  __device__ int64_t head_channel() const { return int64_t{unit.head} * kHead; }
  // First key tile of a state that the warp owns.
  __device__ int first_key_tile() const { return row_tile * kKeyTiles; }

  __device__ int rows() const { return static_cast<int>(segment.end - segment.begin); }
  __device__ int chunks() const { return (rows() + kRows - 1) / kRows; }
  // Factor that brings states, and products that become operands of float16, near 1: one over the number of keys that
  // the last row of chunk i attends to. Other types have the range of float32.
  __device__ float factor(int i) const { return kScaled<E> ? fast_reciprocal(num_keys(i, kRows - 1)) : 1.f; }
  // Number of keys that a row of chunk i attends to.
  __device__ float num_keys(int i, int row_of_chunk) const {
    return unit.num_keys + (p.causal ? static_cast<float>(i * kRows + row_of_chunk + 1) : 0.f);
  }

  __device__ const RowMatrix& matrix(Matrices m) const {
    switch (m) {
      case Matrices::kQ:
        return p.q;
      case Matrices::kK:
        return p.k;
      case Matrices::kV:
        return p.v;
      case Matrices::kG:
        return p.g;
      case Matrices::kDY:
        return p.d_y;
      case Matrices::kDQ:
        return p.d_q;
      case Matrices::kDK:
        return p.d_k;
      case Matrices::kDV:
        return p.d_v;
      default:
        return p.d_g;
    }
  }

  // Rows of a chunk that starts at row `first` of the segment and has n rows, 1 to kRows. Loads after the last row
  // repeat it, so that they need no condition; stores there do nothing.
  struct Chunk {
    int first = 0, n = kRows;
    int rows[2];  // the lane's, in the segment

    Chunk() = default;
    __device__ Chunk(const GradientTeam& team, int first, int n) : first(first), n(n) {
      const int row = team.row_tile * kTile + team.lane / 4;
#pragma unroll
      for (int h = 0; h < 2; ++h) rows[h] = first + min(row + 8 * h, n - 1);
    }
  };
  __device__ Chunk chunk(int i) const { return {*this, i * kRows, min(kRows, rows() - i * kRows)}; }
  // Number of rows of a chunk from the warp's first one on; not positive if the warp has none.
  __device__ int rest(const Chunk& chunk) const { return chunk.n - row_tile * kTile; }

  // Address `rows` times `row_elements` elements after another one.
  template <typename S>
  static __device__ S* moved(S* address, int rows, int row_elements) {
    return reinterpret_cast<S*>(reinterpret_cast<uintptr_t>(address) +
                                multiply_wide(rows, row_elements * static_cast<int>(sizeof(S))));
  }
  // The lane's channels of the segment's first row, and those of a row.
  template <Matrices kMatrix>
  __device__ E* first_row() const {
    return moved(static_cast<E*>(unit.rows[static_cast<int>(kMatrix)]), channel(), 1);
  }
  template <Matrices kMatrix>
  __device__ LaneRows<E> load(const Chunk& chunk) const {
    LaneRows<E> x;
    const E* const first = first_row<kMatrix>();
    const int stride = static_cast<int>(matrix(kMatrix).stride);
#pragma unroll
    for (int h = 0; h < 2; ++h) load_lane_row(x, h, moved(first, chunk.rows[h], stride));
    return x;
  }
  template <Matrices kMatrix>
  __device__ void store(const Chunk& chunk, const Acc& a) const {
    E* const first = first_row<kMatrix>();
    const int stride = static_cast<int>(matrix(kMatrix).stride);
#pragma unroll
    for (int h = 0; h < 2; ++h)
      if (lane / 4 + 8 * h < rest(chunk)) store_lane_row(moved(first, chunk.rows[h], stride), a, h);
  }
  __device__ LaneAngles load_angles(const Chunk& chunk) const {
    LaneAngles angles;
    if (!p.rotary) {
      angles.x[0] = angles.x[1] = make_float4(1.f, 0.f, 1.f, 0.f);
      return angles;
    }
    const float* const first = moved(unit.angles, channel(), 1);
#pragma unroll
    for (int h = 0; h < 2; ++h)
      angles.x[h] = *reinterpret_cast<const float4*>(moved(first, chunk.rows[h], static_cast<int>(p.width())));
    return angles;
  }

  // ---- states, [d + 1, d] float32: sums by key and value channel, then sums by key channel ----

  __device__ float* state(float* states) const {
    return states + (segment.slot * p.num_heads + unit.head) * p.state_size();
  }
  template <typename S>
  __device__ S* sequence_state(S* states) const {
    return states + (segment.sequence * p.num_heads + unit.head) * p.state_size();
  }
  // Loads the warp's tiles of a state, and the sums at its own key channels. A null state is zero.
  __device__ void load_state(const float* state, Acc (&by_value)[kKeyTiles], LaneChannels& sum) const {
    visit(by_value, [&](float& x, int offset) { x = state ? state[offset] : 0.f; });
#pragma unroll
    for (int i = 0; i < 4; ++i) sum.x[i / 2][i % 2] = state ? state[kHead * kHead + channel() + i] : 0.f;
  }
  // `sums` are those at all key channels, in shared memory.
  __device__ void store_state(float* state, Acc (&by_value)[kKeyTiles], const float* sums) const {
    visit(by_value, [&](float& x, int offset) { state[offset] = x; });
    if (lane >= 4 || row_tile > 0) return;
#pragma unroll
    for (int i = 0; i < 4; ++i) state[kHead * kHead + channel() + i] = sums[channel() + i];
  }

  // Stores a . b of the warp's rows, over own channels, in `sums` [kRows, kTiles].
  __device__ void put_row_sums(float* sums, const Acc& a, const Acc& b) const {
    float sum[2] = {};
#pragma unroll
    for (int i = 0; i < 8; ++i) sum[i / 2 % 2] += a.x[i / 4][i % 4] * b.x[i / 4][i % 4];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      sum[h] = quad_sum(sum[h]);
      if (lane % 4 == 0) sums[(row_tile * kTile + lane / 4 + 8 * h) * kTiles + channel_tile] = sum[h];
    }
  }
  // Sums over all channels, for the lane's rows of row tile r, after a barrier.
  __device__ RowPair get_row_sums(const float* sums, int r) const {
    RowPair sum;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float* const parts = sums + (r * kTile + lane / 4 + 8 * h) * kTiles + lane % 4 * (kTiles / 4);
      float x = parts[0];
      if constexpr (kTiles == 8) x += parts[1];
      sum.x[h] = quad_sum(x);
    }
    return sum;
  }

 private:
  template <typename F>
  __device__ void visit(Acc (&a)[kKeyTiles], F f) const {
    const int value = own() + lane / 8 * 4 + lane / 4 % 2;
#pragma unroll
    for (int t = 0; t < kKeyTiles; ++t)
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const int key = (first_key_tile() + t) * kTile + lane % 4 * 4 + i / 4 * 2 + i % 2;
        f(a[t].x[i / 4][i % 4], key * kHead + value + i / 2 % 2 * 2);
      }
  }
};

}  // namespace recgrela::cuda
