// A call of gated_rela as the host plans it, and the cut of its sequences into segments.
#pragma once

#include "kernels/gated_rela/params.h"
#include "kernels/common/sequences.cuh"
#include "kernels/common/tile.cuh"

namespace recgrela::cuda {

constexpr int kMaxHistory = 3;  // rows before a chunk that the convolution needs, at most
constexpr int kMaxKernelSize = 4;

// A call's parameters and what the host makes of them.
struct RelaPlan : GatedRelaParams {
  bool cut = false;               // sequences may have more than one segment
  int64_t num_slots = 0;          // places for segments; not all are taken
  float* key_state = nullptr;     // [slots, H, d + 1, d] sums of R phi(k) (x) v and phi(k)
  float* query_state = nullptr;   // likewise of R phi(q) (x) (gradient of the numerator) and d(denominator) phi(q)
  float* conv_partial = nullptr;  // [slots, D, 5] gradients of the taps (the last one last) and the bias

  // Teams number their work, the heads of the slots, from first_work on. The backward's launches are of num_rooms
  // teams. Each has room for the state of keys over the chunk's count, before every chunk of a causal segment or of the
  // whole bidirectional one: the sums by value and key channels in tiles [rooms, chunks + 1, tiles, tiles, 256] of
  // dtype, the last for an exchange between the team's warps, and those of keys [rooms, chunks, d].
  int64_t first_work = 0, num_rooms = 0, room_chunks = 0;
  void* chunk_states = nullptr;
  float* chunk_sums = nullptr;

  __host__ __device__ int64_t state_size() const { return int64_t{head_dim} * (head_dim + 1); }
  __host__ __device__ int64_t width() const { return int64_t{num_heads} * head_dim; }
  __host__ __device__ int64_t works() const { return num_slots * num_heads; }
  __host__ __device__ int64_t tiles() const { return (head_dim + kTile - 1) / kTile; }
};

// Rows of one sequence that a team takes.
struct Segment {
  int64_t sequence, row0, length;  // row0: the sequence's first
  int64_t before;                  // rows before it, in a state that it begins from
  int64_t begin, end;              // rows of the sequence
  int64_t index, count;            // among the sequence's segments
  int64_t slot;
  void* chunk_states;  // the team's room in the plan's
  float* chunk_sums;
};

// Of sequence b, or a later one.
inline __device__ int64_t first_slot(const RelaPlan& p, int64_t b) {
  return first_slot(p.sequences, p.segment_rows, b);
}

// All lanes of the warp take part. False: the slot is not taken.
inline __device__ bool find_segment(const RelaPlan& p, int64_t slot, Segment& segment) {
  const int64_t b = p.cut ? sequence_of_slot(p.sequences, p.segment_rows, slot) : slot;
  const RowRange rows = sequence_rows(p.sequences, b);
  segment.sequence = b, segment.slot = slot;
  segment.row0 = rows.begin, segment.length = rows.end - rows.begin;
  segment.before = p.initial_position ? p.initial_position[b] : 0;
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

// The kernels of one element type; each launches what the plan asks for.
template <typename E>
struct RelaKernels {
  static cudaError_t key_sums(const RelaPlan& plan, cudaStream_t stream);
  static cudaError_t query_sums(const RelaPlan& plan, cudaStream_t stream);
  static cudaError_t forward(const RelaPlan& plan, cudaStream_t stream);
  static cudaError_t backward(const RelaPlan& plan, cudaStream_t stream);
};

}  // namespace recgrela::cuda
