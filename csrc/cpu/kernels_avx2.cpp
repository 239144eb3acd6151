// The kernels compiled for avx2.
#include "headers.h"

#if defined(__x86_64__)

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif

#define RECGRELA_ISA avx2
#define RECGRELA_VECTOR_BYTES 32
#include "kernels.inl"

#if defined(__clang__)
#pragma clang attribute pop
#endif

#endif  // __x86_64__
