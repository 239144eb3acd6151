// Rows of 16 channels as lanes load, compute and store them, for the backward of heads of 64 and 128 channels.
//
// Column c = 2 (l % 4) + e + 8 j of a tile (tile.cuh) is channel 4 (l % 4) + 2 j + e of its 16 channels. Lane l thus
// holds four adjacent channels of rows l / 4 and l / 4 + 8, which it loads and stores in one piece. Products do not
// depend on the order of channels.
#pragma once

#include "kernels/common/activations.cuh"
#include "kernels/common/tile.cuh"

namespace recgrela::cuda {

// Four adjacent channels of two rows, as in memory.
template <typename E>
struct LaneRows {
  static constexpr int kWords = sizeof(E);
  uint32_t x[2][kWords] = {};
};

// Loads row `row` of the two from an address aligned to the four channels.
template <typename E>
__device__ void load_lane_row(LaneRows<E>& rows, int row, const E* from) {
  if constexpr (sizeof(E) == 4) {
    const uint4 r = *reinterpret_cast<const uint4*>(from);
    rows.x[row][0] = r.x, rows.x[row][1] = r.y, rows.x[row][2] = r.z, rows.x[row][3] = r.w;
  } else {
    const uint2 r = *reinterpret_cast<const uint2*>(from);
    rows.x[row][0] = r.x, rows.x[row][1] = r.y;
  }
}

template <typename E>
__device__ Acc unpack_rows(const LaneRows<E>& rows) {
  Acc a;
#pragma unroll
  for (int h = 0; h < 2; ++h)
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      float2 pair;
      if constexpr (sizeof(E) == 4)
        pair = make_float2(bits_float(rows.x[h][2 * j]), bits_float(rows.x[h][2 * j + 1]));
      else
        pair = unpack2<E>(rows.x[h][j]);
      a.x[j][2 * h] = pair.x, a.x[j][2 * h + 1] = pair.y;
    }
  return a;
}

template <typename E>
__device__ void store_lane_row(E* to, const Acc& a, int row) {
  const float x[4] = {a.x[0][2 * row], a.x[0][2 * row + 1], a.x[1][2 * row], a.x[1][2 * row + 1]};
  if constexpr (sizeof(E) == 4)
    *reinterpret_cast<float4*>(to) = make_float4(x[0], x[1], x[2], x[3]);
  else
    *reinterpret_cast<uint2*>(to) = make_uint2(pack2<E>(x[0], x[1]), pack2<E>(x[2], x[3]));
}

// One number for each of the lane's four channels.
struct alignas(16) LaneChannels {
  float x[2][2] = {};  // [j][e]
};
inline __device__ LaneChannels load_channels(const float* from) {
  const float4 r = *reinterpret_cast<const float4*>(from);
  return {{{r.x, r.y}, {r.z, r.w}}};
}
inline __device__ void store_channels(float* to, const LaneChannels& c, float factor) {
  *reinterpret_cast<float4*>(to) =
      make_float4(factor * c.x[0][0], factor * c.x[0][1], factor * c.x[1][0], factor * c.x[1][1]);
}
// A tile whose rows are equal.
inline __device__ Acc equal_rows(const LaneChannels& c) {
  Acc a;
#pragma unroll
  for (int i = 0; i < 8; ++i) a.x[i / 4][i % 4] = c.x[i / 4][i % 2];
  return a;
}
// Row kRow of a tile.
template <int kRow>
__device__ LaneChannels channels_of_row(const Acc& a) {
  const RowVector row = row_of<kRow>(a);
  return {{{row.x[0], row.x[1]}, {row.x[2], row.x[3]}}};
}
inline __device__ void add_scaled(LaneChannels& sum, const LaneChannels& c, float factor) {
#pragma unroll
  for (int i = 0; i < 4; ++i) sum.x[i / 2][i % 2] += factor * c.x[i / 2][i % 2];
}

// (cos, sin) of the lane's pairs of channels in its two rows.
struct LaneAngles {
  float4 x[2];
};
// R x, or R^-1 x if kBack.
template <bool kBack>
__device__ Acc rotate(const Acc& x, const LaneAngles& angles) {
  Acc y;
#pragma unroll
  for (int h = 0; h < 2; ++h)
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const float cos = j ? angles.x[h].z : angles.x[h].x, s = j ? angles.x[h].w : angles.x[h].y;
      const float sin = kBack ? -s : s, u = x.x[j][2 * h], v = x.x[j][2 * h + 1];
      y.x[j][2 * h] = u * cos - v * sin, y.x[j][2 * h + 1] = v * cos + u * sin;
    }
  return y;
}

}  // namespace recgrela::cuda
