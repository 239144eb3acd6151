// The kernels of dropout, compiled for each instruction set.
#include "dropout.h"

#define RECGRELA_KERNELS "dropout.inl"
#include "foreach_isa.inl"

RECGRELA_DEFINE_KERNELS(DropoutKernels, dropout_kernels)
