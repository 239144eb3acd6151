// Compiles the kernels of one op for each instruction set. A source file defines RECGRELA_KERNELS, the name of the .inl
// file with the kernels, and includes this file; the kernels then exist in the namespaces baseline, avx2 and avx512.
// The .inl file defines kKernels<T>, and RECGRELA_DEFINE_KERNELS the function that returns the ones to use.

// Standard headers are included before the compiler is switched to an instruction set: inline functions in them are
// shared with the rest of the program, which must run on every processor.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#include "common.h"
#include "isa.h"

#define RECGRELA_VECTOR_BYTES 16
namespace recgrela::cpu::baseline {
#include "vec.inl"
#include RECGRELA_KERNELS
}  // namespace recgrela::cpu::baseline
#undef RECGRELA_VECTOR_BYTES

#if defined(__x86_64__)

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif
#define RECGRELA_VECTOR_BYTES 32
namespace recgrela::cpu::avx2 {
#include "vec.inl"
#include RECGRELA_KERNELS
}  // namespace recgrela::cpu::avx2
#undef RECGRELA_VECTOR_BYTES
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma")
#endif
#define RECGRELA_VECTOR_BYTES 64
namespace recgrela::cpu::avx512 {
#include "vec.inl"
#include RECGRELA_KERNELS
}  // namespace recgrela::cpu::avx512
#undef RECGRELA_VECTOR_BYTES
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#define RECGRELA_KERNELS_IN_USE(T) \
  (isa() == Isa::kAvx512 ? avx512::kKernels<T> : isa() == Isa::kAvx2 ? avx2::kKernels<T> : baseline::kKernels<T>)
#else
#define RECGRELA_KERNELS_IN_USE(T) (baseline::kKernels<T>)
#endif  // __x86_64__

// Defines the function template `const Type<T>& function()` for float and double.
#define RECGRELA_DEFINE_KERNELS(Type, function)    \
  namespace recgrela::cpu {                        \
  template <typename T>                            \
  const Type<T>& function() {                      \
    return RECGRELA_KERNELS_IN_USE(T);             \
  }                                                \
  template const Type<float>& function<float>();   \
  template const Type<double>& function<double>(); \
  }
