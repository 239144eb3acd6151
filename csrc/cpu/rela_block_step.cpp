// The kernels of rela_block_step, compiled for each instruction set.
#include "rela_block_step.h"

#define RECGRELA_KERNELS "rela_block_step.inl"
#include "foreach_isa.inl"

RECGRELA_DEFINE_KERNELS(RelaBlockStepKernels, rela_block_step_kernels)
