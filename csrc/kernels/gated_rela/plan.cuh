// Plan of a gated_rela call: its parameters and what the host derives from them.
#pragma once

#include <algorithm>
#include <type_traits>

#include "kernels/common/segments.cuh"
#include "kernels/common/tile.cuh"
#include "kernels/gated_rela/params.h"

namespace recgrela::cuda {

constexpr int kMaxKernelSize = GatedRelaParams::kMaxKernelSize;
constexpr int kMaxHistory = kMaxKernelSize - 1;  // rows before a chunk that the convolution reads

// Row tiles of a chunk of the backward of heads of 64 and 128 channels, limited by shared memory.
inline __host__ __device__ constexpr int gradient_row_tiles(int64_t element_bytes, int head_dim) {
  return element_bytes == 4 && head_dim == 128 ? 1 : 2;
}

// Blocks per multiprocessor of the backward of these heads, for which the compiler limits registers.
inline __host__ __device__ constexpr int gradient_blocks(int head_dim) { return head_dim == 128 ? 1 : 2; }

// Whether sums that become operands are divided by the number of keys, to fit float16's range.
template <typename E>
constexpr bool kScaled = std::is_same_v<E, fp16>;

struct RelaPlan : GatedRelaParams {
  SegmentPlan segments;
  float* key_states = nullptr;     // [slots, H, d + 1, d]: sums of R phi(k) (x) v, then of phi(k)
  float* query_states = nullptr;   // the same for R phi(q) (x) u and d_denominator phi(q); narrow/reverse.cuh defines u
  float* conv_partials = nullptr;  // [slots, D, 5]: gradients of up to 4 weights, the last one fourth, and the bias

  // The unit of work of a team of warps is one head of one slot. The num_teams teams of a backward walk the units, each
  // with a workspace for the state of keys before every chunk of a causal segment:
  //   chunk_states  heads of up to 32 channels: [teams, max_chunks, warps] of narrow::KeyState; wider ones: [teams,
  //                 max_chunks + 1, tiles, tiles, 256] of dtype, by value and key channels in tiles, over the number of
  //                 keys; the team exchanges tiles through the last one, and a bidirectional sequence has one state
  //   chunk_sums    wider heads: [teams, max_chunks, row tiles, d], of phi(k) before each row tile
  int64_t num_teams = 0, max_chunks = 0;
  void* chunk_states = nullptr;
  float* chunk_sums = nullptr;

  // Elements from a chunk of 16 rows to the one before; backward only.
  struct ChunkSteps {
    int q = 0, k = 0, v = 0, g = 0, d_y = 0, d_q = 0, d_k = 0, d_v = 0, d_g = 0;
  } steps;

  __host__ __device__ int64_t state_size() const { return int64_t{head_dim} * (head_dim + 1); }
  __host__ __device__ int64_t width() const { return int64_t{num_heads} * head_dim; }
  __host__ __device__ int64_t num_units() const { return segments.num_slots * num_heads; }
  __host__ __device__ int64_t num_tiles() const { return (head_dim + kTile - 1) / kTile; }
};

// Weight k of a channel, which applies to the row 3 - k before; zero if a shorter kernel lacks it.
inline __device__ float conv_weight(const RelaPlan& p, int64_t channel, int k) {
  k -= kMaxKernelSize - p.kernel_size;
  return k >= 0 ? p.conv_weight[channel * p.kernel_size + k] : 0.f;
}

// Number of teams that walk the units of a backward, of which the device runs `resident` at a time: as many as give
// each of them the same number of units. The units of a team belong to one head, and the number of teams is even, since
// a block may have two.
inline int64_t balanced_teams(const RelaPlan& p, int64_t resident) {
  const int64_t multiple = p.num_heads % 2 == 0 ? p.num_heads : 2 * p.num_heads;
  const int64_t most = std::max<int64_t>(1, resident / multiple) * multiple;
  const int64_t rounds = std::max<int64_t>(1, ceil_div(p.num_units(), most));
  return ceil_div(ceil_div(p.num_units(), rounds), multiple) * multiple;
}

// Segment that a team processes, with the position of its first row and the team's workspace.
struct RelaSegment : Segment {
  int64_t position;
  void* chunk_states;
  float* chunk_sums;

  __device__ int64_t length() const { return sequence_end - sequence_begin; }
};

// Kernels of one element type; each function launches one for all units of work.
template <typename E>
struct RelaKernels {
  static cudaError_t key_sums(const RelaPlan& plan, cudaStream_t stream);
  static cudaError_t query_sums(const RelaPlan& plan, cudaStream_t stream);
  static cudaError_t forward(const RelaPlan& plan, cudaStream_t stream);
  static cudaError_t backward(const RelaPlan& plan, cudaStream_t stream);
  // The same for heads of 64 and 128 channels.
  static cudaError_t wide_query_sums(const RelaPlan& plan, cudaStream_t stream);
  static cudaError_t wide_backward(const RelaPlan& plan, cudaStream_t stream);
};

}  // namespace recgrela::cuda
