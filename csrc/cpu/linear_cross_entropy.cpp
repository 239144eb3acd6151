// The kernels of linear_cross_entropy, compiled for each instruction set.
#include "linear_cross_entropy.h"

#define RECGRELA_KERNELS "linear_cross_entropy.inl"
#include "foreach_isa.inl"

RECGRELA_DEFINE_KERNELS(LinearCrossEntropyKernels, linear_cross_entropy_kernels)
