// The kernels of key_sums, compiled for each instruction set.
#include "key_sums.h"

#define RECGRELA_KERNELS "key_sums.inl"
#include "foreach_isa.inl"

RECGRELA_DEFINE_KERNELS(GatedRelaKernels, key_sums_kernels)
