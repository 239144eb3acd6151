// The kernels of add_norm, compiled for each instruction set.
#include "add_norm.h"

#define RECGRELA_KERNELS "add_norm.inl"
#include "foreach_isa.inl"

RECGRELA_DEFINE_KERNELS(AddNormKernels, add_norm_kernels)
