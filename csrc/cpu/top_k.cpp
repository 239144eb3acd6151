// The kernels of top_k, compiled for each instruction set.
#include "top_k.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define RECGRELA_KERNELS "top_k.inl"
#include "foreach_isa.inl"

namespace recgrela::cpu {
const TopKKernels& top_k_kernels() { return RECGRELA_KERNELS_IN_USE(float); }
}  // namespace recgrela::cpu
