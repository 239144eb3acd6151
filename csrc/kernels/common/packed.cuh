// Groups of adjacent channels of a row, which a thread loads and stores with one instruction if they are aligned.
#pragma once

#include "kernels/common/device.cuh"

namespace recgrela::cuda {

// N adjacent channels of a row, as in memory.
template <typename E, int N>
struct alignas(N * sizeof(E)) Packed {
  static_assert(N % 2 == 0 && N * sizeof(E) <= 16, "one load instruction takes up to 16 bytes");
  uint32_t words[N * sizeof(E) / 4];
};

template <typename E, int N>
__device__ void unpack(const Packed<E, N>& packed, float (&out)[N]) {
#pragma unroll
  for (int i = 0; i < N / 2; ++i) {
    if constexpr (sizeof(E) == 4) {
      out[2 * i] = bits_float(packed.words[2 * i]);
      out[2 * i + 1] = bits_float(packed.words[2 * i + 1]);
    } else {
      const float2 pair = unpack2<E>(packed.words[i]);
      out[2 * i] = pair.x, out[2 * i + 1] = pair.y;
    }
  }
}

template <typename E, int N>
__device__ Packed<E, N> pack(const float (&values)[N]) {
  Packed<E, N> packed;
#pragma unroll
  for (int i = 0; i < N / 2; ++i) {
    if constexpr (sizeof(E) == 4) {
      packed.words[2 * i] = float_bits(values[2 * i]);
      packed.words[2 * i + 1] = float_bits(values[2 * i + 1]);
    } else {
      packed.words[i] = pack2<E>(values[2 * i], values[2 * i + 1]);
    }
  }
  return packed;
}

// Loads N channels that are aligned to their size, which is 8 or 16 bytes.
template <typename E, int N>
__device__ Packed<E, N> load_packed(const E* from) {
  Packed<E, N> packed;
  if constexpr (sizeof(packed) == 16) {
    const uint4 words = __ldcs(reinterpret_cast<const uint4*>(from));
    packed.words[0] = words.x, packed.words[1] = words.y, packed.words[2] = words.z, packed.words[3] = words.w;
  } else {
    const uint2 words = __ldcs(reinterpret_cast<const uint2*>(from));
    packed.words[0] = words.x, packed.words[1] = words.y;
  }
  return packed;
}

// Loads the first `valid` channels one by one, and zeros after them: for the end of a row, or rows that are not
// aligned.
template <typename E, int N>
__device__ void load_each(const E* from, int valid, float (&out)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) out[i] = i < valid ? to_float(from[i]) : 0.f;
}

// Stores the first `valid` channels, with one instruction if `whole`: all N are valid and aligned.
template <typename E, int N>
__device__ void store_row(E* to, int valid, bool whole, const float (&values)[N]) {
  if (whole) {
    const Packed<E, N> packed = pack<E>(values);
    if constexpr (sizeof(packed) == 4) {
      __stcg(reinterpret_cast<uint32_t*>(to), packed.words[0]);
    } else if constexpr (sizeof(packed) == 16) {  // the compiler splits most plain stores into words
      __stcg(reinterpret_cast<uint4*>(to),
             make_uint4(packed.words[0], packed.words[1], packed.words[2], packed.words[3]));
    } else {
      __stcg(reinterpret_cast<uint2*>(to), make_uint2(packed.words[0], packed.words[1]));
    }
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i)
      if (i < valid) to[i] = from_float<E>(values[i]);
  }
}

}  // namespace recgrela::cuda
