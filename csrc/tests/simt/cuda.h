// Names that CUDA's headers declare at global scope.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "tests/simt/host.h"

#define __global__
#define __device__
#define __host__
#define __constant__
#define __grid_constant__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __shared__ static

using cudaError_t = int;
constexpr cudaError_t cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorInvalidConfiguration = 9,
                      cudaErrorInsufficientDriver = 35, cudaErrorNoKernelImageForDevice = 209, cudaErrorAssert = 710;
using cudaStream_t = void*;
inline cudaError_t cudaMemsetAsync(void* data, int value, size_t bytes, cudaStream_t) {
  if (bytes) std::memset(data, value, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : error == cudaErrorInvalidValue ? "invalid argument" : "an error";
}

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

// NOLINTBEGIN: CUDA's names
#define RECGRELA_VECTOR2(Type, name) \
  struct alignas(8) name {           \
    Type x, y;                       \
  };                                 \
  inline name make_##name(Type x, Type y) { return {x, y}; }
#define RECGRELA_VECTOR4(Type, name) \
  struct alignas(16) name {          \
    Type x, y, z, w;                 \
  };                                 \
  inline name make_##name(Type x, Type y, Type z, Type w) { return {x, y, z, w}; }
RECGRELA_VECTOR2(float, float2)
RECGRELA_VECTOR2(int, int2)
RECGRELA_VECTOR2(unsigned, uint2)
RECGRELA_VECTOR4(float, float4)
RECGRELA_VECTOR4(int, int4)
RECGRELA_VECTOR4(unsigned, uint4)
#undef RECGRELA_VECTOR2
#undef RECGRELA_VECTOR4

extern recgrela::simt::Index threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
constexpr int warpSize = 32;

inline void __syncthreads() { recgrela::simt::barrier(); }
inline void __syncwarp(unsigned mask = 0xffffffffu) {
  recgrela::simt::collective(recgrela::simt::Collective::kSyncWarp, mask, nullptr);
}
template <typename T>
T __shfl_sync(unsigned mask, T value, int lane, int width = 32) {
  return recgrela::simt::shuffle(recgrela::simt::Collective::kShuffle, mask, value, lane, width);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32) {
  return recgrela::simt::shuffle(recgrela::simt::Collective::kShuffleXor, mask, value, lanes, width);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  return recgrela::simt::shuffle(recgrela::simt::Collective::kShuffleUp, mask, value, delta, width);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  return recgrela::simt::shuffle(recgrela::simt::Collective::kShuffleDown, mask, value, delta, width);
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  recgrela::simt::VoteOperands v{predicate != 0, 0};
  recgrela::simt::collective(recgrela::simt::Collective::kBallot, mask, &v);
  return v.result;
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, !predicate) == 0; }

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline uint32_t __float_as_uint(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}
inline float __uint_as_float(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}
template <typename T>
T __ldg(const T* p) {
  return *p;
}
template <typename T>
T __ldcg(const T* p) {
  return *p;
}
template <typename T>
T __ldcs(const T* p) {
  return *p;
}
template <typename T>
void __stcg(T* p, T x) {
  *p = x;
}
template <typename T>
void __stcs(T* p, T x) {
  *p = x;
}
inline float rsqrtf(float x) { return 1 / std::sqrt(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __expf(float x) { return std::exp(x); }
inline void sincospif(float x, float* sin, float* cos) {
  *sin = static_cast<float>(std::sin(M_PI * x)), *cos = static_cast<float>(std::cos(M_PI * x));
}
inline float __logf(float x) { return std::log(x); }

#define RECGRELA_MIN_MAX(Type)                                 \
  constexpr Type min(Type x, Type y) { return y < x ? y : x; } \
  constexpr Type max(Type x, Type y) { return x < y ? y : x; }
RECGRELA_MIN_MAX(int)
RECGRELA_MIN_MAX(unsigned)
RECGRELA_MIN_MAX(long)
RECGRELA_MIN_MAX(unsigned long)
RECGRELA_MIN_MAX(long long)
RECGRELA_MIN_MAX(unsigned long long)
#undef RECGRELA_MIN_MAX
inline float min(float x, float y) { return std::fmin(x, y); }
inline float max(float x, float y) { return std::fmax(x, y); }
inline double min(double x, double y) { return std::fmin(x, y); }
inline double max(double x, double y) { return std::fmax(x, y); }
// NOLINTEND
