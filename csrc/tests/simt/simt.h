// Runs the .cu sources on the CPU, thread by thread, for tests under sanitizers: a twin of what kernels/device.cuh
// and CUDA's headers declare. Each thread of a block is a fiber; blocks run one after another. A fiber runs until it
// waits for others: at __syncthreads or at a collective of its warp, which the last lane to come carries out for all.
// Dynamic shared memory holds NaN when a block begins; variables declared __shared__ keep what the last block left.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

namespace recgrela::simt {

// A fault of a kernel. It is thrown out of launch; the rest of the grid does not run.
struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// The order in which warps, and lanes within one, run between two barriers. Shuffled: a new one after every barrier,
// and now and then another warp takes over at a collective.
enum class Order { kAscending, kDescending, kShuffled };
void set_order(Order order, uint64_t seed = 0);

// When asynchronous copies take place: as late as copies_wait allows, at once, or either at random.
enum class Copies { kLate, kEarly, kMixed };
void set_copies(Copies copies);

void set_multiprocessors(int count);

enum class Collective {
  kSyncWarp,
  kShuffle,
  kShuffleXor,
  kShuffleUp,
  kShuffleDown,
  kBallot,
  kMmaBf16,
  kMmaFp16,
  kMmaTf32,
  kTransposeMatrix,
  kLoadMatrices,
  kLoadMatricesTransposed,
};

// Each lane of `mask` brings its operands; returns when all have, with the results in place.
void collective(Collective kind, uint32_t mask, void* operands);
void barrier();
[[noreturn]] void fail(const std::string& message);  // ends the launch from within a thread

struct MmaOperands {
  float* d;
  const uint32_t *a, *b;
};
struct MatrixOperands {
  uint32_t* r;
  const void* row;
  uint16_t copy[8];  // the row as it was when its lane came: what other lanes write must have been waited for
};
struct ShuffleOperands {
  uint64_t value;
  unsigned argument, width;
  uint64_t result;
};
struct VoteOperands {
  bool predicate;
  uint32_t result;
};

template <typename T>
T shuffle(Collective kind, uint32_t mask, T value, unsigned argument, int width) {
  static_assert(sizeof(T) <= 8);
  ShuffleOperands s{0, argument, static_cast<unsigned>(width), 0};
  std::memcpy(&s.value, &value, sizeof(T));
  collective(kind, mask, &s);
  std::memcpy(&value, &s.result, sizeof(T));
  return value;
}

// Runs call(arguments) in every thread of the grid.
void run(int64_t blocks, int threads, size_t shared_bytes, void (*call)(const void*), const void* arguments);

struct Index {
  unsigned x, y, z;
};

}  // namespace recgrela::simt

// ---- what CUDA declares at global scope ----

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

// ---- the twins of kernels/device.cuh ----

namespace recgrela::cuda {

struct fp16 {
  uint16_t bits;
};
struct bf16 {
  uint16_t bits;
};

inline uint32_t float_bits(float x) { return __float_as_uint(x); }
inline float bits_float(uint32_t x) { return __uint_as_float(x); }

inline float to_float(float x) { return x; }
inline float to_float(bf16 x) { return bits_float(static_cast<uint32_t>(x.bits) << 16); }
inline float to_float(fp16 x) {
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16, rest = x.bits & 0x7fffu;
  if (rest >= 0x7c00u) return bits_float(sign | 0x7f800000u | (rest & 0x3ffu) << 13);  // infinity, NaN
  // The exponent's bias differs by 112; the product makes subnormal numbers normal.
  return bits_float(sign | float_bits(bits_float(rest << 13) * 0x1p112f));
}

// Rounds to nearest even.
template <typename E>
E from_float(float x);
template <>
inline float from_float<float>(float x) {
  return x;
}
template <>
inline bf16 from_float<bf16>(float x) {
  const uint32_t bits = float_bits(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {0x7fff};
  return {static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16)};
}
template <>
inline fp16 from_float<fp16>(float x) {
  const uint32_t sign = float_bits(x) >> 16 & 0x8000u;
  uint32_t bits = float_bits(x) & 0x7fffffffu;
  if (bits > 0x7f800000u) return {0x7fff};
  if (bits >= 0x477ff000u) {  // 65520 and above
    bits = 0x7c00u;
  } else if (bits < 0x38800000u) {  // below 2^-14: a sum with 0.5, whose last place is 2^-24, rounds
    bits = float_bits(bits_float(bits) + 0.5f) - float_bits(0.5f);
  } else {
    bits = (bits + 0xfffu + (bits >> 13 & 1u) - (112u << 23)) >> 13;
  }
  return {static_cast<uint16_t>(sign | bits)};
}

// Two numbers of 16 bits in one register, `low` in the low half.
template <typename E>
uint32_t pack2(float low, float high) {
  return from_float<E>(low).bits | static_cast<uint32_t>(from_float<E>(high).bits) << 16;
}
template <typename E>
float2 unpack2(uint32_t packed) {
  return {to_float(E{static_cast<uint16_t>(packed)}), to_float(E{static_cast<uint16_t>(packed >> 16)})};
}

// Subnormal numbers count as 0.
inline float flush_subnormal(float x) { return std::fabs(x) < 0x1p-126f ? std::copysign(0.0f, x) : x; }
inline float fast_exp2(float x) { return flush_subnormal(std::exp2(flush_subnormal(x))); }
inline float where_positive(float x, float yes, float no) { return x > 0 ? yes : no; }
inline float fast_reciprocal(float x) {
  x = flush_subnormal(x);
  return x == 0 ? std::copysign(INFINITY, x) : flush_subnormal(1 / x);
}

namespace simt_internal {
inline void mma(simt::Collective kind, float* d, const uint32_t* a, const uint32_t* b) {
  simt::MmaOperands operands{d, a, b};
  simt::collective(kind, 0xffffffffu, &operands);
}
}  // namespace simt_internal

template <typename E>
void mma16816(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
template <>
inline void mma16816<bf16>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  simt_internal::mma(simt::Collective::kMmaBf16, d, a, b);
}
template <>
inline void mma16816<fp16>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  simt_internal::mma(simt::Collective::kMmaFp16, d, a, b);
}
inline void mma1688_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  simt_internal::mma(simt::Collective::kMmaTf32, d, a, b);
}

template <bool kTranspose>
void load_matrices(uint32_t (&r)[4], const void* row) {
  simt::MatrixOperands operands{r, row, {}};
  simt::collective(kTranspose ? simt::Collective::kLoadMatricesTransposed : simt::Collective::kLoadMatrices,
                   0xffffffffu, &operands);
}

inline uint32_t transpose_matrix(uint32_t x) {
  simt::collective(simt::Collective::kTransposeMatrix, 0xffffffffu, &x);
  return x;
}

void copy_async16(void* shared, const void* global, bool valid);
void copies_commit();
void wait_for_copies(int pending);
template <int kPending>
void copies_wait() {
  wait_for_copies(kPending);
}

unsigned char* dynamic_shared();

#define RECGRELA_DEVICE_CHECK(condition, message)      \
  do {                                                 \
    if (!(condition)) ::recgrela::simt::fail(message); \
  } while (false)

template <typename Params>
cudaError_t launch(void (*kernel)(Params), int64_t blocks, int threads, size_t shared_bytes, cudaStream_t,
                   const Params& params) {
  if (blocks == 0) return cudaSuccess;
  if (blocks < 0 || blocks > INT32_MAX || threads < 1 || threads > 1024) return cudaErrorInvalidConfiguration;
  struct Call {
    void (*kernel)(Params);
    const Params& params;
  } call{kernel, params};
  simt::run(
      blocks, threads, shared_bytes,
      [](const void* arguments) {
        const Call& call = *static_cast<const Call*>(arguments);
        call.kernel(call.params);
      },
      &call);
  return cudaSuccess;
}

int multiprocessors();

}  // namespace recgrela::cuda
