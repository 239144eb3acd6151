// Team of warps that computes the gradients of one head of 64 or 128 channels of one segment at a time, in chunks of
// kRows rows.
//
// A warp owns 16 channels of every matrix. It loads them, computes all that is elementwise, stores its gradients, and
// holds the states at its own value channels and all key channels. Lanes hold channels as in lane_rows.cuh.
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
  // Elements before the first row of the segment and channel of the head, in each matrix and the rotary table.
  int64_t offsets[static_cast<int>(Matrices::kCount)], angles;
};

template <typename E, int kHead>
struct GradientTeam {
  static constexpr int kTiles = kHead / kTile, kThreads = 32 * kTiles;
  static constexpr int kRowTiles = gradient_row_tiles(sizeof(E), kHead), kRows = kRowTiles * kTile;
  // Pairs of row tiles (r, c) with c <= r: the tiles of scores within a chunk. Pair (r, c) has index r (r + 1) / 2 + c.
  static constexpr int kPairs = kRowTiles * (kRowTiles + 1) / 2;
  // Blocks per multiprocessor for which the compiler limits registers.
  static constexpr int kBlocks = gradient_blocks(kHead);

  const RelaPlan& p;
  GradientUnit& unit;  // in shared memory, to save registers
  const RelaSegment& segment;
  int warp, lane;
  TileLane at;

  __device__ GradientTeam(const RelaPlan& p, GradientUnit& unit)
      : p(p), unit(unit), segment(unit.segment), warp(threadIdx.x / 32), lane(threadIdx.x % 32), at(lane) {}

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
      found.chunk_sums = p.chunk_sums + slot * p.max_chunks * kHead;
      unit.index = i, unit.head = head, unit.segment = found;
      unit.angles = found.position * p.width() + head_channel();
#pragma unroll
      for (int m = 0; m < static_cast<int>(Matrices::kCount); ++m)
        unit.offsets[m] = found.begin * matrix(static_cast<Matrices>(m)).stride + head_channel();
    }
    __syncthreads();
    return found.exists();
  }

  __device__ int own() const { return warp * kTile; }              // first channel that the warp owns
  __device__ int channel() const { return own() + lane % 4 * 4; }  // first of the lane's four channels
  __device__ int64_t head_channel() const { return int64_t{unit.head} * kHead; }

  __device__ int rows() const { return static_cast<int>(segment.end - segment.begin); }
  __device__ int chunks() const { return (rows() + kRows - 1) / kRows; }
  // Factor that brings states, and products that become operands of float16, near 1: one over the number of keys that
  // the last row of chunk i attends to. Other types have the range of float32.
  __device__ float factor(int i) const { return kScaled<E> ? fast_reciprocal(num_keys(i)) : 1.f; }
  __device__ float num_keys(int i) const {
    if (!p.causal) return static_cast<float>(segment.length());
    return static_cast<float>(segment.position) + static_cast<float>((i + 1) * kRows);
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
    uint32_t rows[2 * kRowTiles];  // the lane's

    Chunk() = default;
    __device__ Chunk(int first, int n) : first(first), n(n) {
#pragma unroll
      for (int i = 0; i < 2 * kRowTiles; ++i) rows[i] = min(static_cast<int>(threadIdx.x % 32 / 4) + 8 * i, n - 1);
    }
    // Number of rows from row tile r on.
    __device__ int rest(int r) const { return n - r * kTile; }
  };

  // Address of element `offset` after an address. The compiler would otherwise add up 64-bit offsets for each row.
  template <typename S>
  static __device__ S* moved(S* address, uint32_t offset) {
    return reinterpret_cast<S*>(reinterpret_cast<uintptr_t>(address) + uint64_t{offset} * sizeof(S));
  }
  // First row of a chunk, at the lane's channels.
  template <Matrices kMatrix>
  __device__ E* chunk_row(int first) const {
    const RowMatrix& rows = matrix(kMatrix);
    const int64_t offset =
        unit.offsets[static_cast<int>(kMatrix)] +
        static_cast<int64_t>(uint64_t{static_cast<uint32_t>(rows.stride)} * static_cast<uint32_t>(first));
    return static_cast<E*>(rows.data) + (offset + channel());
  }
  template <Matrices kMatrix>
  __device__ LaneRows<E> load(const Chunk& chunk, int r) const {
    LaneRows<E> x;
    const E* const first = chunk_row<kMatrix>(chunk.first);
    const auto stride = static_cast<uint32_t>(matrix(kMatrix).stride);
#pragma unroll
    for (int h = 0; h < 2; ++h) load_lane_row(x, h, moved(first, chunk.rows[2 * r + h] * stride));
    return x;
  }
  template <Matrices kMatrix>
  __device__ void store(const Chunk& chunk, int r, const Acc& a) const {
    E* const first = chunk_row<kMatrix>(chunk.first);
    const auto stride = static_cast<uint32_t>(matrix(kMatrix).stride);
#pragma unroll
    for (int h = 0; h < 2; ++h)
      if (lane / 4 + 8 * h < chunk.rest(r)) store_lane_row(moved(first, chunk.rows[2 * r + h] * stride), a, h);
  }
  __device__ LaneAngles load_angles(const Chunk& chunk, int r) const {
    LaneAngles angles;
    if (!p.rotary) {
      angles.x[0] = angles.x[1] = make_float4(1.f, 0.f, 1.f, 0.f);
      return angles;
    }
    const auto width = static_cast<uint32_t>(p.width());
    const auto row = static_cast<int64_t>(uint64_t{width} * static_cast<uint32_t>(chunk.first));
    const float* const first = p.rotary + (unit.angles + row + channel());
#pragma unroll
    for (int h = 0; h < 2; ++h)
      angles.x[h] = *reinterpret_cast<const float4*>(moved(first, chunk.rows[2 * r + h] * width));
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
  // A null state is zero.
  __device__ void load_state(const float* state, Acc (&by_value)[kTiles], LaneChannels& sum) const {
    visit(by_value, [&](float& x, int offset) { x = state ? state[offset] : 0.f; });
#pragma unroll
    for (int i = 0; i < 4; ++i) sum.x[i / 2][i % 2] = state ? state[kHead * kHead + channel() + i] : 0.f;
  }
  __device__ void store_state(float* state, Acc (&by_value)[kTiles], const LaneChannels& sum) const {
    visit(by_value, [&](float& x, int offset) { state[offset] = x; });
    if (lane >= 4) return;
#pragma unroll
    for (int i = 0; i < 4; ++i) state[kHead * kHead + channel() + i] = sum.x[i / 2][i % 2];
  }

  // Sums over the four lanes of each row of a . b, over own channels, in `sums` [kRows, kTiles].
  __device__ void put_row_sums(float* sums, int tile, const Acc& a, const Acc& b) const {
    float sum[2] = {};
#pragma unroll
    for (int i = 0; i < 8; ++i) sum[i / 2 % 2] += a.x[i / 4][i % 4] * b.x[i / 4][i % 4];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      sum[h] = quad_sum(sum[h]);
      if (lane % 4 == 0) sums[(tile * kTile + lane / 4 + 8 * h) * kTiles + warp] = sum[h];
    }
  }
  // Sums over all channels, for the lane's rows, after a barrier.
  __device__ RowPair get_row_sums(const float* sums, int tile) const {
    RowPair sum;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float* const row = sums + (tile * kTile + lane / 4 + 8 * h) * kTiles + lane % 4 * (kTiles / 4);
      float x = row[0];
      if constexpr (kTiles == 8) x += row[1];
      sum.x[h] = quad_sum(x);
    }
    return sum;
  }

 private:
  template <typename F>
  __device__ void visit(Acc (&a)[kTiles], F f) const {
    const int value = own() + lane / 8 * 4 + lane / 4 % 2;
#pragma unroll
    for (int t = 0; t < kTiles; ++t)
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const int key = t * kTile + lane % 4 * 4 + i / 4 * 2 + i % 2;
        f(a[t].x[i / 4][i % 4], key * kHead + value + i / 2 % 2 * 2);
      }
  }
};

}  // namespace recgrela::cuda
