// GPU features that the kernels use beyond C++: number types, tensor-core products, asynchronous copies, launches. All
// inline PTX of the project is here. csrc/tests/simt/device.h implements every function for the CPU, so that the
// same .cu sources run there thread by thread under sanitizers.
#pragma once

#ifdef RECGRELA_SIMT_HOST
#include "tests/simt/simt.h"
#else

#undef NDEBUG  // keeps the checks of values: PyTorch reports __assert_fail as a device-side assertion
#include <cassert>

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace recgrela::cuda {

using fp16 = __half;
using bf16 = __nv_bfloat16;

inline __device__ float to_float(float x) { return x; }
inline __device__ float to_float(fp16 x) { return __half2float(x); }
inline __device__ float to_float(bf16 x) { return __bfloat162float(x); }

// Rounds to nearest even.
template <typename E>
__device__ E from_float(float x);
template <>
inline __device__ float from_float<float>(float x) {
  return x;
}
template <>
inline __device__ fp16 from_float<fp16>(float x) {
  return __float2half_rn(x);
}
template <>
inline __device__ bf16 from_float<bf16>(float x) {
  return __float2bfloat16_rn(x);
}

// Packs two 16-bit numbers into one register, `low` in the low half.
template <typename E>
__device__ uint32_t pack2(float low, float high);
template <>
inline __device__ uint32_t pack2<fp16>(float low, float high) {
  uint32_t packed;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}
template <>
inline __device__ uint32_t pack2<bf16>(float low, float high) {
  uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}
template <typename E>
__device__ float2 unpack2(uint32_t packed);
template <>
inline __device__ float2 unpack2<fp16>(uint32_t packed) {
  __half2 pair;
  memcpy(&pair, &packed, 4);
  return __half22float2(pair);
}
template <>
inline __device__ float2 unpack2<bf16>(uint32_t packed) {
  return make_float2(__uint_as_float(packed << 16), __uint_as_float(packed & 0xffff0000u));
}

inline __device__ uint32_t float_bits(float x) { return __float_as_uint(x); }
inline __device__ float bits_float(uint32_t x) { return __uint_as_float(x); }

// 2^x and 1/x to about one unit in the last place; subnormal numbers are flushed to 0.
inline __device__ float fast_exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
inline __device__ float fast_reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// a * b. The compiler fuses it with the addition to an address, into one instruction, where the same expression in C++
// may become a product of 64-bit numbers.
inline __device__ int64_t multiply_wide(int a, int b) {
  int64_t product;
  asm("mul.wide.s32 %0, %1, %2;" : "=l"(product) : "r"(a), "r"(b));
  return product;
}

// The larger of two numbers; NaN if one is NaN.
inline __device__ float max_or_nan(float x, float y) {
  float z;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(z) : "f"(x), "f"(y));
  return z;
}

// tanh(x) with a relative error of up to 2^-11, in one instruction: for results that are rounded to 16 bits.
inline __device__ float fast_tanh(float x) {
  float y;
  asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// x > 0 ? x + 1 : 2^t, in three instructions without a branch.
inline __device__ float exp2_or_add_one(float x, float t) {
  float y;
  asm("{\n\t.reg .pred p;\n\tsetp.gt.f32 p, %1, 0f00000000;\n\tex2.approx.ftz.f32 %0, %2;\n\t"
      "@p add.f32 %0, %1, 0f3F800000;\n\t}"
      : "=&f"(y)
      : "f"(x), "f"(t));
  return y;
}

// Halves two packed 16-bit numbers. The result is exact unless it is subnormal.
template <typename E>
__device__ uint32_t halve2(uint32_t packed);
template <>
inline __device__ uint32_t halve2<fp16>(uint32_t packed) {
  uint32_t half;
  asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(half) : "r"(packed), "r"(0x38003800u));
  return half;
}
template <>
inline __device__ uint32_t halve2<bf16>(uint32_t packed) {
  uint32_t half;  // sm_80 has no multiplication of bfloat16
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(half) : "r"(packed), "r"(0x3f003f00u), "r"(0x80008000u));
  return half;
}

// The smaller of two packed 16-bit numbers and one, each. The result for NaN is one.
template <typename E>
__device__ uint32_t min_one2(uint32_t packed);
template <>
inline __device__ uint32_t min_one2<fp16>(uint32_t packed) {
  uint32_t y;
  asm("min.f16x2 %0, %1, %2;" : "=r"(y) : "r"(packed), "r"(0x3c003c00u));
  return y;
}
template <>
inline __device__ uint32_t min_one2<bf16>(uint32_t packed) {
  uint32_t y;
  asm("min.bf16x2 %0, %1, %2;" : "=r"(y) : "r"(packed), "r"(0x3f803f80u));
  return y;
}

// Returns x, in a register that the compiler does not compute again where it is used.
inline __device__ int keep(int x) {
  asm volatile("" : "+r"(x));
  return x;
}

// D += A B by one warp with PTX's fragment layouts: mma.m16n8k16 for 16-bit operands, and mma.m16n8k8 for TF32, which
// reads the upper 19 bits of each operand. Sums are float32.
template <typename E>
__device__ void mma16816(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
template <>
inline __device__ void mma16816<bf16>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
template <>
inline __device__ void mma16816<fp16>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// D = A B + C.
template <typename E>
__device__ void mma16816(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const float (&c)[4]);
template <>
inline __device__ void mma16816<bf16>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                                      const float (&c)[4]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%11,%12,%13};"
      : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
}
template <>
inline __device__ void mma16816<fp16>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                                      const float (&c)[4]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%11,%12,%13};"
      : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
}
// D = A B.
inline __device__ void mma16816_first(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%10,%10,%10};"
      : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(0.f));
}
inline __device__ void mma1688_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// D = A B + C.
inline __device__ void mma1688_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                                    const float (&c)[4]) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%11,%12,%13};"
      : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
}

// D += A B with an inner dimension of 4. Its operands need fewer neighbouring registers.
inline __device__ void mma1684_tf32(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t b) {
  asm("mma.sync.aligned.m16n8k4.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a0), "r"(a1), "r"(b));
}

// ldmatrix.x4: lane l passes row l % 8 of matrix l / 8, eight 16-bit numbers in shared memory, aligned to 16 bytes.
template <bool kTranspose>
__device__ void load_matrices(uint32_t (&r)[4], const void* row) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  if constexpr (kTranspose) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
  }
}

// Stores four matrices of 8 x 8 16-bit numbers, each with its rows one after the other, to 512 bytes of shared memory
// aligned to 16. Register m of lane l holds row l / 4 of matrix m at columns 2 (l % 4) and + 1. Other lanes may read
// them after __syncwarp.
inline __device__ void store_matrices(unsigned char* matrices, int lane, const uint32_t (&r)[4]) {
#if __CUDA_ARCH__ >= 900
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(matrices + lane * 16));
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};"
               :
               : "r"(address), "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
               : "memory");
#else
#pragma unroll
  for (int m = 0; m < 4; ++m) reinterpret_cast<uint32_t*>(matrices)[m * 32 + lane] = r[m];
#endif
}
// Stores them as the quarters of a tile of 16 rows, kStride bytes apart. `row` is the address of row l % 16, 16 bytes
// further for the upper half of the lanes.
template <int kStride>
__device__ void store_matrix_rows(unsigned char* row, int lane, const uint32_t (&r)[4]) {
#if __CUDA_ARCH__ >= 900
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};"
               :
               : "r"(address), "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
               : "memory");
#else
  unsigned char* const pair = row + (lane / 4 - lane % 16) * kStride + lane % 4 * 4 - lane / 16 * 16;
#pragma unroll
  for (int m = 0; m < 4; ++m) *reinterpret_cast<uint32_t*>(pair + m % 2 * (8 * kStride) + m / 2 * 16) = r[m];
#endif
}

// Stores a tile of 16 x 16 numbers of 16 bits whose rows are 32 bytes with the halves swapped in some of them. Offsets
// of the lane from the tile, in numbers: `row`, half l / 16 of row l % 16, and `pair`, its two numbers at row l / 4 and
// column 2 (l % 4); row l / 4 + 8 has the same order of halves.
template <typename E>
__device__ void store_matrices_at(E* tile, int row, int pair, const uint32_t (&r)[4]) {
  static_assert(sizeof(E) == 2);
#if __CUDA_ARCH__ >= 900
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(tile + row));
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};"
               :
               : "r"(address), "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
               : "memory");
#else
  *reinterpret_cast<uint32_t*>(tile + pair) = r[0];
  *reinterpret_cast<uint32_t*>(tile + pair + 8 * 16) = r[1];
  *reinterpret_cast<uint32_t*>(tile + (pair ^ 8)) = r[2];
  *reinterpret_cast<uint32_t*>(tile + (pair ^ 8) + 8 * 16) = r[3];
#endif
}

// Stores four matrices one after the other, but the third before the second; `row` is the offset of lane l's row there.
inline __device__ void store_matrices_swapped(unsigned char* matrices, int lane, int row, const uint32_t (&r)[4]) {
#if __CUDA_ARCH__ >= 900
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(matrices + row));
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};"
               :
               : "r"(address), "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
               : "memory");
#else
#pragma unroll
  for (int m = 0; m < 4; ++m) reinterpret_cast<uint32_t*>(matrices)[(m % 2 * 2 + m / 2) * 32 + lane] = r[m];
#endif
}

// Transposes an 8 x 8 matrix of 16-bit numbers; lane l holds row l / 4 at columns 2 (l % 4) and + 1.
inline __device__ uint32_t transpose_matrix(uint32_t x) {
  uint32_t y;
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
  return y;
}

// threadIdx.x, read again at every call: the compiler does not hold it in a register from one call to the next.
inline __device__ unsigned thread_index() {
  unsigned x;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(x));
  return x;
}

// Starts a copy of 16 bytes from global to shared memory, both aligned to 16. If not `valid`, it writes zeros and reads
// nothing. A thread may read its own copies after copies_wait, and those of other threads after a barrier that follows.
inline __device__ void copy_async16(void* shared, const void* global, bool valid) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
               :
               : "r"(address), "l"(global), "r"(valid ? 16 : 0)
               : "memory");
}
// The same without the condition.
inline __device__ void copy_async16(void* shared, const void* global) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" : : "r"(address), "l"(global) : "memory");
}
inline __device__ void copies_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most kPending of this thread's newest groups are pending.
template <int kPending>
__device__ void copies_wait() {
  asm volatile("cp.async.wait_group %0;" : : "n"(kPending) : "memory");
}

// Starts to load the line of 128 bytes that holds an address of global memory into the L2 cache.
inline __device__ void prefetch_line(const void* global) { asm volatile("prefetch.global.L2 [%0];" : : "l"(global)); }

// Returns x. The compiler cannot compute values that depend on the result before a loop, which would take registers in
// all of the loop.
inline __device__ int computed_here(int x) {
  int y;
  asm volatile("mov.b32 %0, %1;" : "=r"(y) : "r"(x));
  return y;
}

// Dynamic shared memory of the block, aligned to 16 bytes.
inline __device__ unsigned char* dynamic_shared() {
  extern __shared__ __align__(16) unsigned char recgrela_shared[];
  return recgrela_shared;
}

// Ends the kernel with an error that PyTorch reports as a device-side assertion.
#define RECGRELA_DEVICE_CHECK(condition, message)                                    \
  do {                                                                               \
    if (!(condition)) __assert_fail(message, "recgrela", 0, "recgrela's operators"); \
  } while (false)

// Launches kernel(params) with `blocks` blocks, which must be below 2^31; does nothing for 0 blocks.
template <typename Params>
cudaError_t launch(void (*kernel)(Params), int64_t blocks, int threads, size_t shared_bytes, cudaStream_t stream,
                   const Params& params) {
  if (blocks == 0) return cudaSuccess;
  if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
  if (shared_bytes > 48 * 1024) {  // the default limit
    const cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
    if (error != cudaSuccess) return error;
  }
  Params copy = params;
  void* arguments[] = {&copy};
  return cudaLaunchKernel(reinterpret_cast<const void*>(kernel), dim3(static_cast<unsigned>(blocks)), dim3(threads),
                          arguments, shared_bytes, stream);
}

// Number of multiprocessors of the current device.
inline int multiprocessors() {
  int device = 0, count = 0;
  if (cudaGetDevice(&device) != cudaSuccess ||
      cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device) != cudaSuccess)
    return 1;
  return count;
}

// Bytes of shared memory that a block may have on the current device.
inline int max_shared_bytes() {
  int device = 0, bytes = 0;
  if (cudaGetDevice(&device) != cudaSuccess ||
      cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) != cudaSuccess)
    return 48 * 1024;
  return bytes;
}

}  // namespace recgrela::cuda
#endif
