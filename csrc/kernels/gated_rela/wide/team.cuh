// Team of warps that processes one head of 64 or 128 channels of one segment, in chunks of kRows rows.
//
// A warp owns 16 channels of queries, keys, values and outputs: it converts queries and keys at its own channels, and
// has the states at its own value channels and all key channels in registers. States and outputs of a chunk take most
// registers. What is the same for all threads is therefore in shared memory, and each phase of a chunk computes the
// indices of the thread again: WideUnit::zero keeps the compiler from holding them.
#pragma once

#include <algorithm>

#include "kernels/gated_rela/plan.cuh"
#include "kernels/gated_rela/tuning.h"
#include "kernels/gated_rela/wide/tiles.cuh"

namespace recgrela::cuda {

// The team's segment, and its first row in every matrix, at the first channel of the head.
struct WideUnit {
  RelaSegment segment;
  const void *q, *k, *v, *g;
  int64_t y;            // elements from the matrix's first
  const float* angles;  // null without a table
  int head, rows;
  int zero;
  int begin[8];  // first row of the chunk, for each warp: too few registers hold it
};

template <typename E, int kHead>
struct WideTeam {
  static constexpr int kTiles = kHead / kTile;  // and warps
  static constexpr int kThreads = 32 * kTiles;
  // float16 scales states, which takes registers.
  static constexpr int kRows = sizeof(E) == 4 ? 32
                               : kHead == 64  ? RECGRELA_GATED_RELA_WIDE_ROWS_64
                               : kScaled<E>   ? std::min(RECGRELA_GATED_RELA_WIDE_ROWS_128, 48)
                                              : RECGRELA_GATED_RELA_WIDE_ROWS_128;
  static constexpr int kRowTiles = kRows / kTile;
  // Whether shared memory has room for only one block per multiprocessor: sm_90 to sm_110 have room for two. The host
  // does not know the architecture, so that only launch bounds and code of kernels may depend on it.
#if defined(__CUDA_ARCH__) && (__CUDA_ARCH__ < 900 || __CUDA_ARCH__ >= 1200)
  static constexpr bool kAlone = sizeof(E) == 4 && kHead == 128;
#else
  static constexpr bool kAlone = false;
#endif
  // Blocks per multiprocessor for which the compiler limits registers: the most without spilling.
  static constexpr int kBlocks = kAlone ? 1 : 16 / kTiles;
  // Whether the state leaves few registers: loops are then unrolled less, and addresses computed where they are used.
  static constexpr bool kShort = sizeof(E) == 4 && kHead == 128 && !kAlone;

  const RelaPlan& p;
  const WideUnit& unit;
  int warp, lane, thread;
  TileLane at;

  __device__ WideTeam(const RelaPlan& p, const WideUnit& unit) : WideTeam(p, unit, thread_index() + unit.zero) {}

  // Finds the block's unit of work, which is one head of one segment; returns whether there is one.
  static __device__ bool find_unit(const RelaPlan& p, WideUnit& unit) {
    const unsigned slot = blockIdx.x / static_cast<unsigned>(p.num_heads);
    RelaSegment s;
    static_cast<Segment&>(s) = find_segment(p.segments, slot);
    const int64_t first = p.initial_position ? p.initial_position[s.sequence] : 0;
    s.position = first + s.begin - s.sequence_begin;
    // The check of sequences, which may come later, refuses positions that are not in the rotary table.
    if (p.rotary && (first < 0 || s.length() > p.rotary_positions - first)) s.count = 0;
    if (threadIdx.x == 0) {
      unit.segment = s;
      unit.head = static_cast<int>(blockIdx.x - slot * static_cast<unsigned>(p.num_heads));
      const int64_t channel = int64_t{unit.head} * kHead;
      auto row = [&](const RowMatrix& rows) { return static_cast<E*>(rows.data) + s.begin * rows.stride + channel; };
      unit.q = row(p.q), unit.k = row(p.k), unit.v = row(p.v), unit.g = p.g.data ? row(p.g) : nullptr;
      unit.y = s.begin * p.y.stride + channel;
      unit.angles = p.rotary ? p.rotary + s.position * p.width() + channel : nullptr;
      unit.rows = static_cast<int>(s.end - s.begin), unit.zero = 0;
      for (int& begin : unit.begin) begin = 0;
    }
    __syncthreads();
    return s.exists();
  }

  __device__ int own() const { return warp * kTile; }  // first channel that the warp owns
  __device__ int64_t head_channel() const { return int64_t{unit.head} * kHead; }
  __device__ int begin() const { return unit.begin[warp]; }
  // Number of rows from the chunk's first one on, and of tiles of the chunk that have some. The shuffle tells the
  // compiler that all lanes have the same number, so that branches on it need no synchronization.
  __device__ int rows_left() const { return __shfl_sync(0xffffffffu, unit.rows - begin(), 0); }
  __device__ int num_tiles() const { return min((rows_left() + kTile - 1) / kTile, kRowTiles); }
  // Moves to the next chunk.
  __device__ void advance(WideUnit& unit) const {
    __syncwarp();
    if (lane == 0) unit.begin[warp] += kRows;
    __syncwarp();
  }

  // Factor of states and of scores before they become operands: one over the number of keys that the last row of a
  // chunk attends to if their range is small, 1 otherwise.
  __device__ float factor() const {
    if constexpr (!kScaled<E>) return 1.f;
    return fast_reciprocal(num_keys(begin() + kRows));
  }
  // Number of keys that row `row` - 1 of the segment attends to.
  __device__ float num_keys(int row) const {
    const RelaSegment& s = unit.segment;
    return p.causal ? static_cast<float>(s.position) + static_cast<float>(row) : static_cast<float>(s.length());
  }

  // Element of a matrix that has the segment's first row at `first`.
  __device__ int64_t offset(const RowMatrix& rows, int row, int channel) const {
    return static_cast<int64_t>(static_cast<uint64_t>(static_cast<uint32_t>(row)) *
                                static_cast<uint32_t>(rows.stride)) +
           channel;
  }

  // ---- copies to shared memory: a warp copies four rows of 128 bytes at a time ----

  static constexpr int kVector = 16 / sizeof(E), kPieces = kHead / (8 * kVector), kStep = 4 * kTiles / kPieces;
  static constexpr int kCopies = kRows / kStep;  // vectors of a thread
  static_assert(kRows % kTile == 0 && kRows % kStep == 0 && kRows <= 64, "make_scores has up to four tiles of rows");

  // Starts copying the rows of the chunk, or of the one kAhead rows after it, and zeros after the segment's last row,
  // to the rows of a matrix from kFirst on, a multiple of 8.
  template <int kFirst = 0, int kAhead = 0, typename Matrix>
  __device__ void copy_rows(Matrix& to, const void* first, const RowMatrix& rows) const {
    const int row = warp / kPieces * 4 + lane / 8, channel = (warp % kPieces * 8 + lane % 8) * kVector;
    const int n = rows_left() - kAhead;
    const E* from = static_cast<const E*>(first) + offset(rows, begin() + kAhead + row, channel);
    E* const out = to.raw(row + kFirst, channel);
#pragma unroll
    for (int c = 0; c < kCopies; ++c) {
      copy_async16(out + Matrix::distance(c * kStep), from, n >= kRows || row + c * kStep < n);
      from += kStep * rows.stride;
    }
  }

  // ---- states, [d + 1, d] float32: sums by key and value channel, then sums by key channel ----

  __device__ const float* state_before() const {
    if (!p.causal || unit.segment.count > 1) return state(p.key_states);
    return p.initial_kv_state ? sequence_state(p.initial_kv_state) : nullptr;
  }
  __device__ float* state(float* states) const {
    return states + (unit.segment.slot * p.num_heads + unit.head) * kHead * (kHead + 1);
  }
  template <typename S>
  __device__ S* sequence_state(S* states) const {
    return states + (unit.segment.sequence * p.num_heads + unit.head) * kHead * (kHead + 1);
  }
  // A null state is zero. `sum` is in shared memory: sums at own key channels.
  __device__ void load_state(const float* state, Acc (&by_value)[kTiles], float* sum) const {
    if (!state) {
      if (lane < kTile) sum[own() + lane] = 0.f;
      return;
    }
    visit(by_value, [&](float& x, int offset) { x = state[offset]; });
    if (lane < kTile) sum[own() + lane] = state[kHead * kHead + own() + lane];
  }
  __device__ void store_state(float* state, Acc (&by_value)[kTiles], const float* sum) const {
    visit(by_value, [&](float& x, int offset) { state[offset] = x; });
    if (lane < kTile) state[kHead * kHead + own() + lane] = sum[own() + lane];
  }

  // This lane's sums at own key channels, from shared memory and back.
  __device__ RowVector row_vector(const float* sums) const {
    RowVector row;
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const float2 x = load2(sums + own() + tile_col(lane, j, 0));
      row.x[2 * j] = x.x, row.x[2 * j + 1] = x.y;
    }
    return row;
  }
  __device__ void store_row_vector(float* sums, const RowVector& row) const {
    if (lane >= 4) return;
#pragma unroll
    for (int j = 0; j < 2; ++j) store2(sums + own() + tile_col(lane, j, 0), row.x[2 * j], row.x[2 * j + 1]);
  }

 private:
  __device__ WideTeam(const RelaPlan& p, const WideUnit& unit, unsigned thread)
      : p(p), unit(unit), warp(thread / 32), lane(thread % 32), thread(thread), at(thread % 32) {}

  template <typename F>
  __device__ void visit(Acc (&by_value)[kTiles], F f) const {
    const int first = tile_col(lane, 0, 0) * kHead + own() + tile_row(lane, 0);
#pragma unroll
    for (int t = 0; t < kTiles; ++t)
#pragma unroll
      for (int e = 0; e < 8; ++e)
        f(by_value[t].x[e / 4][e % 4], first + (t * kTile + tile_col(0, e / 4, e % 4)) * kHead + tile_row(0, e % 4));
  }
};

}  // namespace recgrela::cuda
