// The functions of kernels/common/device.cuh, for the CPU.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "tests/simt/cuda.h"
#include "tests/simt/host.h"

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
  // The biases of the exponents differ by 112; the product normalizes subnormal numbers.
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
  } else if (bits < 0x38800000u) {  // below 2^-14: adding 0.5, whose last place is 2^-24, rounds
    bits = float_bits(bits_float(bits) + 0.5f) - float_bits(0.5f);
  } else {
    bits = (bits + 0xfffu + (bits >> 13 & 1u) - (112u << 23)) >> 13;
  }
  return {static_cast<uint16_t>(sign | bits)};
}

// Packs two 16-bit numbers into one register, `low` in the low half.
template <typename E>
uint32_t pack2(float low, float high) {
  return from_float<E>(low).bits | static_cast<uint32_t>(from_float<E>(high).bits) << 16;
}
template <typename E>
float2 unpack2(uint32_t packed) {
  return {to_float(E{static_cast<uint16_t>(packed)}), to_float(E{static_cast<uint16_t>(packed >> 16)})};
}

// Replaces subnormal numbers by 0.
inline float flush_subnormal(float x) { return std::fabs(x) < 0x1p-126f ? std::copysign(0.0f, x) : x; }
inline float fast_exp2(float x) { return flush_subnormal(std::exp2(flush_subnormal(x))); }
// Rounds to 11 bits, which gives the largest error that the instruction may have.
inline float fast_tanh(float x) {
  const float y = std::tanh(x);
  return std::isfinite(y) ? bits_float((float_bits(y) + 0xfffu + (float_bits(y) >> 13 & 1u)) & 0xffffe000u) : y;
}
inline float exp2_or_add_one(float x, float t) { return x > 0 ? x + 1 : fast_exp2(t); }
template <typename E>
uint32_t min_one2(uint32_t packed) {
  const float2 pair = unpack2<E>(packed);
  return pack2<E>(std::fmin(pair.x, 1.f), std::fmin(pair.y, 1.f));
}
template <typename E>
uint32_t halve2(uint32_t packed) {
  const float2 pair = unpack2<E>(packed);
  return pack2<E>(0.5f * pair.x, 0.5f * pair.y);
}
inline int64_t multiply_wide(int a, int b) { return int64_t{a} * b; }
inline float max_or_nan(float x, float y) { return std::isnan(x) || std::isnan(y) ? NAN : std::fmax(x, y); }
inline float fast_reciprocal(float x) {
  x = flush_subnormal(x);
  return x == 0 ? std::copysign(INFINITY, x) : flush_subnormal(1 / x);
}

inline int keep(int x) { return x; }

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
template <typename E>
void mma16816(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const float (&c)[4]) {
  for (int i = 0; i < 4; ++i) d[i] = c[i];
  mma16816<E>(d, a, b);
}
inline void mma16816_first(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  for (float& x : d) x = 0;
  mma16816<bf16>(d, a, b);
}
inline void mma1688_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  simt_internal::mma(simt::Collective::kMmaTf32, d, a, b);
}

inline void mma1684_tf32(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t b) {
  mma1688_tf32(d, {a0, a1, 0, 0}, {b, 0});
}
inline void mma1688_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const float (&c)[4]) {
  for (int i = 0; i < 4; ++i) d[i] = c[i];
  mma1688_tf32(d, a, b);
}

template <bool kTranspose>
void load_matrices(uint32_t (&r)[4], const void* row) {
  simt::MatrixOperands operands{r, row, {}};
  simt::collective(kTranspose ? simt::Collective::kLoadMatricesTransposed : simt::Collective::kLoadMatrices,
                   0xffffffffu, &operands);
}

inline void store_matrices(unsigned char* matrices, int lane, const uint32_t (&r)[4]) {
  if (reinterpret_cast<uintptr_t>(matrices) % 16) simt::fail("store_matrices: not aligned to 16 bytes");
  simt::note_store(matrices);
  for (int m = 0; m < 4; ++m) std::memcpy(matrices + m * 128 + lane * 4, &r[m], 4);
}
template <int kStride>
void store_matrix_rows(unsigned char* row, int lane, const uint32_t (&r)[4]) {
  if (reinterpret_cast<uintptr_t>(row) % 16 || kStride % 16)
    simt::fail("store_matrix_rows: a row is not aligned to 16 bytes");
  simt::note_store(row - lane % 16 * kStride - lane / 16 * 16);
  unsigned char* const pair = row + (lane / 4 - lane % 16) * kStride + lane % 4 * 4 - lane / 16 * 16;
  for (int m = 0; m < 4; ++m) std::memcpy(pair + m % 2 * (8 * kStride) + m / 2 * 16, &r[m], 4);
}

template <typename E>
void store_matrices_at(E* tile, int row, int pair, const uint32_t (&r)[4]) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  if (reinterpret_cast<uintptr_t>(tile + row) % 16) simt::fail("store_matrices_at: a row is not aligned to 16 bytes");
  if (row / 16 != lane % 16 || pair / 16 != lane / 4 || pair % 8 != lane % 4 * 2)
    simt::fail("store_matrices_at: an offset is not the lane's");
  simt::note_store(tile);
  for (int i = 0; i < 4; ++i) std::memcpy(tile + (pair ^ i / 2 * 8) + i % 2 * 8 * 16, &r[i], 4);
}

inline void store_matrices_swapped(unsigned char* matrices, int lane, int row, const uint32_t (&r)[4]) {
  if (row != (lane / 16 + lane / 8 % 2 * 2) * 128 + lane % 8 * 16)
    simt::fail("store_matrices_swapped: a row is not the lane's");
  store_matrices(matrices, lane, {r[0], r[2], r[1], r[3]});
}

inline uint32_t transpose_matrix(uint32_t x) {
  simt::collective(simt::Collective::kTransposeMatrix, 0xffffffffu, &x);
  return x;
}

inline unsigned thread_index() { return threadIdx.x; }

void copy_async16(void* shared, const void* global, bool valid);
inline void copy_async16(void* shared, const void* global) { copy_async16(shared, global, true); }
void copies_commit();
void wait_for_copies(int pending);
template <int kPending>
void copies_wait() {
  wait_for_copies(kPending);
}

inline void prefetch_line(const void* global) { [[maybe_unused]] volatile char c = *static_cast<const char*>(global); }

inline int computed_here(int x) { return x; }

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
int max_shared_bytes();

}  // namespace recgrela::cuda
