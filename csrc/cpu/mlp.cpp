// The kernels of mlp, compiled for each instruction set.
#include "mlp.h"

#define RECGRELA_KERNELS "mlp.inl"
#include "foreach_isa.inl"

RECGRELA_DEFINE_KERNELS(MlpKernels, mlp_kernels)
