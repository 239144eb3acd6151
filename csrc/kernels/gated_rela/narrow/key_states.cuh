// States of keys before each chunk of a causal segment. A forward sweep stores them for the reverse sweep.
#pragma once

#include "kernels/gated_rela/narrow/unit.cuh"

namespace recgrela::cuda::narrow {

template <typename E, int kHead>
struct KeyStatesMemory {
  struct alignas(16) Stage {
    unsigned char k[kRowsOrTileBytes<E>], v[kRowsOrTileBytes<E>], angles[kRowsBytes<float>];
  };
  struct Warp {
    Stage stages[2];
    alignas(16) unsigned char plain[kTileBytes<E>];
  } warps[kHead / kTile];
};

// Stores a state as operands, over the number of keys n where that matters, and its sums. `lane_out` is the lane's
// first element of the KeyState, 4 bytes from that of the lane before.
template <typename E, int kHead>
__device__ void store_key_state(const Unit<E, kHead>& unit, unsigned char* lane_out, const Acc (&state)[kHead / kTile],
                                const Acc& sum, float n) {
  const float factor = kScaled<E> ? fast_reciprocal(n) : 1.f;
#pragma unroll
  for (int t = 0; t < kHead / kTile; ++t) {
    Acc s = state[t];
    if constexpr (kScaled<E>) scale(s, factor);
    const Split<E> m = to_split<E>(s);
#pragma unroll
    for (int i = 0; i < 4 * kParts<E>; ++i)
      *reinterpret_cast<uint32_t*>(lane_out + t * kTileBytes<E> + i * 128) = m.part[i / 4].r[i % 4];
  }
  if (unit.at.lane >= 4) return;
#pragma unroll
  for (int j = 0; j < 2; ++j)
    *reinterpret_cast<float4*>(lane_out + 12 * unit.at.lane + kHead / kTile * kTileBytes<E> + j * 64) =
        make_float4(sum.x[j][0], sum.x[j][1], sum.x[j][2], sum.x[j][3]);
}

// Stores the state of keys before each chunk of a causal segment. All chunks but the last one are full.
template <typename E, int kHead>
__device__ void store_key_states(const Unit<E, kHead>& unit, KeyStatesMemory<E, kHead>& memory) {
  constexpr int kTiles = kHead / kTile;
  const RelaPlan& p = unit.p;
  const TileLane& at = unit.at;
  auto& own = memory.warps[unit.warp];
  Acc state[kTiles], sum;
  unit.load_state(unit.state_before(), state, sum);
  const int last = unit.chunks() - 1;
  unsigned char* out = reinterpret_cast<unsigned char*>(unit.chunk_state(0)) + at.lane * 4;
  const E *k = unit.lane_rows(p.k, 0), *v = unit.lane_rows(p.v, 0);
  const float* angles = unit.lane_angles(0);
  const int width = unit.keep_uniform(p.rotary ? static_cast<int>(p.width()) : 0);  // 0: no angles
  auto copy = [&](int stage) {
    auto& m = own.stages[stage];
    const int k_stride = static_cast<int>(p.k.stride), v_stride = static_cast<int>(p.v.stride);
    unit.part.copy(m.k, k, k_stride, kTile);
    unit.part.copy(m.v, v, v_stride, kTile);
    if (width) unit.angles_part.copy(m.angles, angles, width, kTile);
    k += kTile * k_stride, v += kTile * v_stride, angles += kTile * width;
  };
  if (!p.rotary) unit.fill_angles(own.stages[0].angles), unit.fill_angles(own.stages[1].angles);
  if (last > 0) copy(0);
  copies_commit();
  float n = unit.num_keys(0);
  uint32_t ones[4];
#pragma unroll
  for (int r = 0; r < 4; ++r) ones[r] = unit.keep_uniform(kOnes<E>);
  for (int i = 0; i < last; ++i) {
    auto& m = own.stages[i % 2];
    copies_wait<0>();
    if (kHead == kTile && p.head_dim < kTile) {
      unit.part.fill_padding(m.k);
      __syncwarp();
    }
    unit.sync();
    if (i + 1 < last) copy((i + 1) % 2);
    copies_commit();
    store_key_state(unit, out, state, sum, n);
    out += kTiles * int{sizeof(KeyState<E, kHead>)};
    if constexpr (kScaled<E>) n += kTile;
    Acc f = load_rows<E>(at, m.k);
    apply_phi(f);
    const Acc rotated = rotate(f, load_angles(at, m.angles));
    if constexpr (sizeof(E) == 4) {
      const Split<E> values = to_split<E>(load_rows<E>(at, m.v));
      __syncwarp();  // other lanes may still read the rows
      store_tile(at, m.v, values);
    }
    store_tile(at, own.plain, to_split<E>(f));
    store_tile(at, m.k, to_split<E>(rotated));
    unit.sync();
    const Split<E> values = load_left_transposed<E>(at, m.v);
#pragma unroll
    for (int t = 0; t < kTiles; ++t)
      add_product(state[t], values, load_right_transposed<E>(at, memory.warps[t].stages[i % 2].k));
    if constexpr (sizeof(E) == 4) {
      Acc part;
      add_ones_product<E>(part, ones, load_right_transposed<E>(at, own.plain));
      add_scaled(sum, part, 1.f);
    } else {
      add_ones_product<E>(sum, ones, load_right_transposed<E>(at, own.plain));
    }
  }
  store_key_state(unit, out, state, sum, n);
  copies_wait<0>();
}

}  // namespace recgrela::cuda::narrow
