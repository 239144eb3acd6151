// The kernels of gated_rela_step, compiled for each instruction set.
#include "gated_rela_step.h"

#define RECGRELA_KERNELS "gated_rela_step.inl"
#include "foreach_isa.inl"

RECGRELA_DEFINE_KERNELS(GatedRelaStepKernels, gated_rela_step_kernels)
