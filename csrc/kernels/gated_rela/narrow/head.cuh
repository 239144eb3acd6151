// Warp that processes one head of one segment, for heads of up to 32 channels.
#pragma once

#include "kernels/gated_rela/narrow/tiles.cuh"
#include "kernels/gated_rela/plan.cuh"

namespace recgrela::cuda::narrow {

// Sums over keys: of R phi(k) (x) v, by tiles of value and key channels, and of phi(k), which all rows of a tile hold.
template <int kTiles>
struct KeySums {
  Acc products[kTiles][kTiles], features[kTiles];
};

// Returns x, as a number that the compiler does not know to be equal. It would keep equal numbers in one register, and
// move them before each instruction that takes several neighbouring registers. All lanes call it.
template <typename T>
__device__ T another_register(T x) {
  return __shfl_xor_sync(0xffffffffu, x, 0);
}

// The sum over the rows of a tile, in all of its rows.
inline __device__ void sum_rows(Acc& a) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    float& x = a.x[i / 2][i % 2];
    x += a.x[i / 2][i % 2 + 2];
#pragma unroll
    for (int lanes = 4; lanes < 32; lanes *= 2) x += __shfl_xor_sync(0xffffffffu, x, lanes);
    a.x[i / 2][i % 2 + 2] = x;
  }
}
// Sets the rows from n on to zeros.
inline __device__ void keep_rows(Acc& a, int lane, int n) {
#pragma unroll
  for (int i = 0; i < 8; ++i)
    if (tile_row(lane, i % 4) >= n) a.x[i / 4][i % 4] = 0.f;
}

template <typename E, int kHead>
struct Head {
  static constexpr int kTiles = kHead / kTile;
  static constexpr int kWarps = 2;  // of a block; they never wait for each other

  const RelaPlan& p;
  const RelaSegment& segment;  // in shared memory, to save registers
  const TileLane at;
  int head = 0;

  __device__ Head(const RelaPlan& p, const RelaSegment& segment) : p(p), segment(segment) {}

  // Finds the head and the segment of the warp's unit of work and stores the segment in `out`, to which `segment`
  // refers. Returns whether there is a segment.
  __device__ bool find_segment(RelaSegment& out) {
    const int64_t unit = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
    if (unit >= p.num_units()) return false;
    const unsigned slot = static_cast<unsigned>(unit) / static_cast<unsigned>(p.num_heads);
    head = static_cast<int>(static_cast<unsigned>(unit) - slot * static_cast<unsigned>(p.num_heads));
    RelaSegment found;
    static_cast<Segment&>(found) = cuda::find_segment(p.segments, slot);
    const int64_t first = p.initial_position ? p.initial_position[found.sequence] : 0;
    found.position = first + found.begin - found.sequence_begin;
    // The check of sequences, which may come later, refuses positions that are not in the rotary table.
    if (p.rotary && (first < 0 || found.length() > p.rotary_positions - first)) found.count = 0;
    if (at.lane == 0) out = found;
    __syncwarp();
    return found.exists();
  }

  __device__ int rows() const { return static_cast<int>(segment.end - segment.begin); }
  __device__ int64_t first_channel() const { return int64_t{head} * p.head_dim; }
  // Returns whether a channel is in the head, not in its padding to a whole tile.
  __device__ bool in_head(int channel) const { return kHead > kTile || channel < p.head_dim; }
  __device__ bool is_padded() const { return kHead == kTile && p.head_dim < kHead; }

  // ---- states, [d + 1, d] float32: sums by key and value channel, then sums by key channel ----

  __device__ float* state(float* states) const { return states + (segment.slot * p.num_heads + head) * p.state_size(); }
  template <typename S>
  __device__ S* sequence_state(S* states) const {
    return states + (segment.sequence * p.num_heads + head) * p.state_size();
  }
  // Sums before a causal segment, or over a whole bidirectional sequence; null: zeros.
  __device__ const float* state_before() const {
    if (!p.causal || segment.count > 1) return state(p.key_states);
    return p.initial_kv_state ? sequence_state(p.initial_kv_state) : nullptr;
  }
  __device__ void load_state(const float* state, KeySums<kTiles>& sums) const {
    if (!state) return;
    const int d = p.head_dim;
    visit(
        sums, [&](float& x, int value, int key) { x = state[key * d + value]; },
        [&](float& x, int key) { x = state[d * d + key]; });
  }
  __device__ void store_state(float* state, KeySums<kTiles>& sums) const {
    const int d = p.head_dim;
    visit(
        sums, [&](float& x, int value, int key) { state[key * d + value] = x; },
        [&](float& x, int key) {
          if (at.lane < 4) state[d * d + key] = x;
        });
  }

  // Channels of this lane's element [j][e] of a tile: of rows and columns.
  static __device__ int row_channel(int lane, int e) {
    return sizeof(E) == 2 ? tile_row(lane, e) : 2 * (lane / 4) + e / 2;
  }
  static __device__ int column_channel(int lane, int j, int e) {
    return sizeof(E) == 2 ? tile_col(lane, j, e) : lane % 4 * 4 + e % 2 * 2 + j;
  }

 private:
  template <typename F, typename G>
  __device__ void visit(KeySums<kTiles>& sums, F product, G feature) const {
#pragma unroll
    for (int t = 0; t < kTiles; ++t)
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const int j = i / 4, e = i % 4, key = t * kTile + column_channel(at.lane, j, e);
        if (!in_head(key)) continue;
        feature(sums.features[t].x[j][e], key);
#pragma unroll
        for (int u = 0; u < kTiles; ++u) {
          const int value = u * kTile + row_channel(at.lane, e);
          if (in_head(value)) product(sums.products[u][t].x[j][e], value, key);
        }
      }
  }
};

}  // namespace recgrela::cuda::narrow
