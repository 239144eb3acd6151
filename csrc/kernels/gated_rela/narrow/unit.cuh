// Team of warps that walks units of work: one head of one segment at a time, in chunks of 16 rows.
//
// A team has one warp per 16 channels of the head, which owns 16 value channels and the key channels with the same
// indices. Heads of up to 16 channels have teams of one warp, which never wait for each other.
#pragma once

#include "kernels/gated_rela/narrow/convolution.cuh"

namespace recgrela::cuda::narrow {

// State of keys in memory: for each warp, its value channels by all key channels as operands, and the sums of phi(k) in
// float32 at its key channels, as the elements of a tile with equal rows that the first four lanes hold.
template <typename E, int kHead>
struct KeyState {
  unsigned char tiles[kHead / kTile][kTileBytes<E>];
  float4 sums[2][4];
};

template <typename E, int kHead>
struct Unit {
  static constexpr int kTiles = kHead / kTile, kWarps = kTiles, kTeams = 2 / kWarps;
  static constexpr int kThreads = 32 * kWarps * kTeams;
  using State = KeyState<E, kHead>;

  const RelaPlan& p;
  const RelaSegment& segment;  // in shared memory, to save registers
  const int warp;
  const TileLane at;
  const RowPart<E> part;
  const RowPart<float> angles_part;
  int head = 0;

  __device__ Unit(const RelaPlan& p, const RelaSegment& segment)
      : p(p), segment(segment), warp(threadIdx.x / 32 % kWarps), part(at, channels()), angles_part(at, channels()) {}

  static __device__ int team() { return static_cast<int>(blockIdx.x) * kTeams + threadIdx.x / (32 * kWarps); }

  // Finds the segment of a unit and stores it in `out`, to which `segment` refers. Returns whether there is one.
  __device__ bool find_segment(int unit, RelaSegment& out) {
    const unsigned slot = static_cast<unsigned>(unit) / static_cast<unsigned>(p.num_heads);
    head = unit - static_cast<int>(slot) * p.num_heads;
    RelaSegment found;
    static_cast<Segment&>(found) = cuda::find_segment(p.segments, slot);
    const int64_t first = p.initial_position ? p.initial_position[found.sequence] : 0;
    found.position = first + found.begin - found.sequence_begin;
    // The check of sequences, which may come later, refuses positions that are not in the rotary table.
    if (p.rotary && (first < 0 || found.length() > p.rotary_positions - first)) found.count = 0;
    sync();  // the previous unit may still use the segment
    if (warp == 0 && at.lane == 0) out = found;
    sync();
    return found.exists();
  }

  __device__ void sync() const {
    if constexpr (kWarps == 1)
      __syncwarp();
    else
      __syncthreads();
  }

  __device__ int64_t first_channel() const { return int64_t{head} * p.head_dim + warp * kTile; }  // that the warp owns
  __device__ int channels() const { return kHead > kTile || p.head_dim >= kTile ? kTile : p.head_dim; }
  __device__ bool owns(int channel) const { return kHead > kTile || channel < p.head_dim; }
  __device__ int rows() const { return static_cast<int>(segment.end - segment.begin); }
  __device__ int chunks() const { return (rows() + kTile - 1) / kTile; }

  // First element of chunk i that this lane copies; null if the matrix is absent.
  __device__ E* lane_rows(const RowMatrix& m, int i) const {
    if (!m.data) return nullptr;
    return static_cast<E*>(m.data) + (segment.begin + i * kTile + part.row_of(at.lane)) * m.stride + first_channel() +
           part.column_of(at.lane);
  }
  // First element of chunk i that this lane holds of a tile.
  __device__ E* lane_elements(const RowMatrix& m, int i) const {
    if (!m.data) return nullptr;
    return static_cast<E*>(m.data) + (segment.begin + i * kTile + at.lane / 4) * m.stride + first_channel() +
           tile_col(at.lane, 0, 0);
  }
  __device__ const float* lane_angles(int i) const {
    if (!p.rotary) return nullptr;
    return p.rotary + (segment.position + i * kTile + angles_part.row_of(at.lane)) * p.width() + first_channel() +
           angles_part.column_of(at.lane);
  }
  __device__ void fill_angles(unsigned char* angles) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) reinterpret_cast<float2*>(angles)[i * 32 + at.lane] = make_float2(1.f, 0.f);
  }

  // This warp's part of the state before chunk i, in the workspace of the team.
  __device__ State* chunk_state(int i) const {
    return static_cast<State*>(p.chunk_states) + (int64_t{team()} * p.max_chunks + i) * kWarps + warp;
  }
  // Number of keys of the last row of chunk i, if sums are divided by it; 1 otherwise.
  __device__ float num_keys(int i) const {
    if (!kScaled<E>) return 1.f;
    return p.causal ? static_cast<float>(segment.position) + static_cast<float>((i + 1) * kTile)
                    : static_cast<float>(segment.length());
  }

  // x, which all lanes have, in a register that the compiler does not compute again where it is used.
  static __device__ int keep_uniform(int x) { return __shfl_sync(0xffffffffu, x, 0); }

  // ---- states, [d + 1, d] float32: sums by key and value channel, then sums by key channel ----

  __device__ float* state(float* states) const { return states + (segment.slot * p.num_heads + head) * p.state_size(); }
  template <typename S>
  __device__ S* sequence_state(S* states) const {
    return states + (segment.sequence * p.num_heads + head) * p.state_size();
  }
  // State of keys before a causal segment, or of a whole bidirectional sequence; null: zeros.
  __device__ const float* state_before() const {
    if (!p.causal || segment.count > 1) return state(p.key_states);
    return p.initial_kv_state ? sequence_state(p.initial_kv_state) : nullptr;
  }
  // Loads the sums at own value channels by all key channels, and those at own key channels to every row of `sum`. A
  // null state leaves zeros.
  __device__ void load_state(const float* state, Acc (&by_value)[kTiles], Acc& sum) const {
    if (!state) return;
    visit(by_value, [&](float& x, int value, int key) { x = state[key * p.head_dim + value]; });
    visit(sum, [&](float& x, int key) { x = state[p.head_dim * p.head_dim + key]; });
  }
  __device__ void store_state(float* state, Acc (&by_value)[kTiles], Acc& sum) const {
    visit(by_value, [&](float& x, int value, int key) { state[key * p.head_dim + value] = x; });
    if (at.lane < 4) visit(sum, [&](float& x, int key) { state[p.head_dim * p.head_dim + key] = x; });
  }

 private:
  template <typename F>
  __device__ void visit(Acc (&a)[kTiles], F f) const {
#pragma unroll
    for (int t = 0; t < kTiles; ++t)
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const int row = warp * kTile + tile_row(at.lane, i % 4), column = t * kTile + tile_col(at.lane, i / 4, i % 4);
        if (row < p.head_dim && column < p.head_dim) f(a[t].x[i / 4][i % 4], row, column);
      }
  }
  template <typename F>
  __device__ void visit(Acc& a, F f) const {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int key = warp * kTile + tile_col(at.lane, i / 4, i % 4);
      if (key < p.head_dim) f(a.x[i / 4][i % 4], key);
    }
  }
};

// Memory of the team.
template <typename Memory, typename U>
__device__ Memory& team_memory() {
  return reinterpret_cast<Memory*>(dynamic_shared())[threadIdx.x / (32 * U::kWarps)];
}

}  // namespace recgrela::cuda::narrow
