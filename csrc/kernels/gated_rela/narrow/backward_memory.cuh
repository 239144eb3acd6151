// Shared memory of a team in the backward, and the rows that it stores.
#pragma once

#include "kernels/gated_rela/narrow/key_states.cuh"

namespace recgrela::cuda::narrow {

template <typename E, int kHead>
constexpr float kRange = kScaled<E> ? kHead : 1;

template <typename E, int kHead>
struct BackwardMemory {
  static constexpr int kTiles = kHead / kTile;
  struct alignas(16) Stage {
    // Rows. R phi(q), R phi(k) and u replace q, k and d_y as operands, and d_g replaces g.
    unsigned char q[kRowsOrTileBytes<E>], k[kRowsOrTileBytes<E>], d_y[kRowsOrTileBytes<E>], g[kRowsBytes<E>];
    unsigned char v[ShiftedRows<E>::kBytes], angles[kRowsBytes<float>];
    KeyState<E, kHead> key_state;  // bidirectional: of the first stage
  };
  struct alignas(16) Warp {
    Stage stages[2];
    unsigned char plain_q[kTileBytes<E>], plain_k[kTileBytes<E>];  // phi
    unsigned char values[sizeof(E) == 4 ? kTileBytes<E> : 16];     // v as an operand
    unsigned char weights[sizeof(E) == 2 ? kTileBytes<E> : 16];    // products of rows of the chunk; float32: in plain_k
    unsigned char d_q[sizeof(E) == 2 ? kRowsBytes<E> : 16], d_k[sizeof(E) == 2 || kTiles > 1 ? kRowsBytes<E> : 16];
    unsigned char d_v[sizeof(E) == 2 ? kRowsBytes<E> : 16];
    unsigned char query_state[kTiles][kTileBytes<E>];  // U, own value channels by all key channels
    unsigned char d_c[kGradientBytes<E>];
    alignas(16) unsigned char conv[Convolution<E>::kSharedBytes + 16];
    // Ones on and below the diagonal, and zeros above it, as operand A. Loading them takes fewer instructions than
    // moving constants to the registers of an instruction.
    uint4 lower[kParts<E> == 1 ? 32 : 1];
    float2 sums[2][4];                       // w, as in KeyState but of one row
    float denominators[kTile], dots[kTile];  // sums over own channels, for the other warps
  };
  static_assert(sizeof(KeyStatesMemory<E, kHead>) <= offsetof(Warp, conv), "weights outlast the sweep over keys");
  union {
    Warp warps[kTiles];
    KeyStatesMemory<E, kHead> keys;  // for the sweep over keys, before the reverse sweep
  };
  RelaSegment segment;
};

// Rows of a chunk in global memory that this lane stores. 16-bit rows pass through a tile of shared memory, so that a
// lane stores 16 bytes.
template <typename E, int kHead>
struct Output {
  E* rows = nullptr;

  __device__ void find(const Unit<E, kHead>& unit, const RowMatrix& m, int chunk) {
    rows = sizeof(E) == 2 ? unit.lane_rows(m, chunk) : unit.lane_elements(m, chunk);
  }
  // Stores n rows, or puts them in the tile.
  __device__ void put(const Unit<E, kHead>& unit, const RowMatrix& m, unsigned char* tile, const Acc& a, int n) const {
    if constexpr (sizeof(E) == 2) {
      store_tile(unit.at, tile, to_split<E>(a));
    } else {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        E* const out = rows + 8 * h * static_cast<int>(m.stride);
        if (unit.at.lane / 4 + 8 * h >= n) continue;
        store2(out, a.x[0][2 * h], a.x[0][2 * h + 1]);
        if (unit.owns(8)) store2(out + 8, a.x[1][2 * h], a.x[1][2 * h + 1]);
      }
    }
  }
  // Stores the rows in the tile, after a barrier, and moves to the chunk before.
  __device__ void get(const Unit<E, kHead>& unit, int step, const unsigned char* tile, int n) {
    if constexpr (sizeof(E) == 2) {
      const uint4 x = *reinterpret_cast<const uint4*>(tile + unit.part.to);
      if (unit.part.row < n) *reinterpret_cast<uint4*>(rows) = x;
    }
    rows += step;
  }
};

}  // namespace recgrela::cuda::narrow
