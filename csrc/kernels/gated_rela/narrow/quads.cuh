// Tiles of float32 rows, whose elements a lane holds as four adjacent channels of two rows.
//
// Channels are permuted within a tile: columns c and c + 8 stand for the channels 2 c and 2 c + 1. A lane's four
// columns are then four adjacent channels, and its rows c and c + 8 of a transposed tile two, which vectors load and
// store. Products do not depend on the order of their inner dimension, and both states and rows use this order of
// channels.
#pragma once

#include "kernels/common/activations.cuh"
#include "kernels/gated_rela/narrow/rows.cuh"

namespace recgrela::cuda::narrow {

constexpr int kQuadRowBytes = kTile * 4;

// The lane's channels of row l / 4 + 8 h.
inline __device__ float4 quad_of(const Acc& a, int h) {
  return make_float4(a.x[0][2 * h], a.x[1][2 * h], a.x[0][2 * h + 1], a.x[1][2 * h + 1]);
}
inline __device__ void set_quad(Acc& a, int h, float4 x) {
  a.x[0][2 * h] = x.x, a.x[1][2 * h] = x.y, a.x[0][2 * h + 1] = x.z, a.x[1][2 * h + 1] = x.w;
}

// Loads or stores a tile at the lane's vector of 16 bytes, 16 l.
inline __device__ Acc load_quads(const unsigned char* lane_tile) {
  Acc a;
#pragma unroll
  for (int h = 0; h < 2; ++h) set_quad(a, h, *reinterpret_cast<const float4*>(lane_tile + 8 * h * kQuadRowBytes));
  return a;
}
inline __device__ void store_quads(unsigned char* lane_tile, const Acc& a) {
#pragma unroll
  for (int h = 0; h < 2; ++h) *reinterpret_cast<float4*>(lane_tile + 8 * h * kQuadRowBytes) = quad_of(a, h);
}

// Offset of the lane in a tile that load_transposed reads.
inline __device__ int transposed_quads(int lane) { return lane % 4 * (2 * kQuadRowBytes) + lane / 4 * 8; }
// The operand M[channel][row].
inline __device__ Operand<float> load_transposed(const unsigned char* lane_tile) {
  Operand<float> m;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 x = *reinterpret_cast<const float2*>(lane_tile + (i / 2 * 8 + i % 2) * kQuadRowBytes);
    set_element(m, i / 2, i % 2, x.x), set_element(m, i / 2, i % 2 + 2, x.y);
  }
  return m;
}

// R x, given quads of (cos, sin) of two pairs of channels.
inline __device__ Acc rotate_quads(const Acc& x, const Acc& angles) {
  Acc y;
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    const float cosine = angles.x[0][e], sine = angles.x[1][e], u = x.x[0][e], v = x.x[1][e];
    y.x[0][e] = u * cosine - v * sine, y.x[1][e] = v * cosine + u * sine;
  }
  return y;
}

// A B^T
inline __device__ Acc multiply_quads(const Operand<float>& a, const Operand<float>& b) {
  Acc d;
#pragma unroll
  for (int j = 0; j < 2; ++j)
#pragma unroll
    for (int s = 0; s < 2; ++s) {
      const uint32_t upper_a[4] = {a.high[s][0], a.high[s][2], a.high[s][1], a.high[s][3]};
      const uint32_t lower_a[4] = {a.low[s][0], a.low[s][2], a.low[s][1], a.low[s][3]};
      const uint32_t upper_b[2] = {b.high[s][2 * j], b.high[s][2 * j + 1]};
      const uint32_t lower_b[2] = {b.low[s][2 * j], b.low[s][2 * j + 1]};
      if (s == 0)
        mma1688_tf32(d.x[j], upper_a, lower_b, {0.f, 0.f, 0.f, 0.f});
      else
        mma1688_tf32(d.x[j], upper_a, lower_b);
      mma1688_tf32(d.x[j], lower_a, upper_b);
      mma1688_tf32(d.x[j], upper_a, upper_b);
    }
  return d;
}

// The same for an operand B that is an operand A as well, without moving its registers.
inline __device__ Acc multiply_quads_in_place(const Operand<float>& a, const Operand<float>& b) {
  Acc d;
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    auto add = [&](const uint32_t (&x)[2][4], const uint32_t (&y)[2][4]) {
#pragma unroll
      for (int i = 0; i < 4; ++i) mma1684_tf32(d.x[j], x[i / 2][i % 2], x[i / 2][i % 2 + 2], y[i / 2][2 * j + i % 2]);
    };
    add(a.high, b.low), add(a.low, b.high), add(a.high, b.high);
  }
  return d;
}

// Ones on and below the diagonal and zeros above it, as an operand A for each half of the inner dimension. Loading them
// from shared memory takes fewer instructions than moving constants to the registers of an instruction.
struct LowerOnes {
  uint4 half[2][32];

  __device__ void store(int lane) {
    constexpr uint32_t kOne = 0x3f800000u;
    const uint32_t even = lane % 4 * 2 <= lane / 4 ? kOne : 0, odd = lane % 4 * 2 < lane / 4 ? kOne : 0;
    half[0][lane] = make_uint4(even, kOne, odd, kOne);
    half[1][lane] = make_uint4(0, even, 0, odd);
  }
};

// The product of these ones with B^T. TF32 represents ones exactly.
inline __device__ Acc multiply_lower(const LowerOnes& ones, int lane, const Operand<float>& b) {
  Acc d;
#pragma unroll
  for (int s = 0; s < 2; ++s) {
    const uint4 quad = ones.half[s][lane];
    const uint32_t a[4] = {quad.x, quad.y, quad.z, quad.w};
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const uint32_t upper_b[2] = {b.high[s][2 * j], b.high[s][2 * j + 1]};
      const uint32_t lower_b[2] = {b.low[s][2 * j], b.low[s][2 * j + 1]};
      if (s == 0)
        mma1688_tf32(d.x[j], a, lower_b, {0.f, 0.f, 0.f, 0.f});
      else
        mma1688_tf32(d.x[j], a, lower_b);
      mma1688_tf32(d.x[j], a, upper_b);
    }
  }
  return d;
}

}  // namespace recgrela::cuda::narrow
