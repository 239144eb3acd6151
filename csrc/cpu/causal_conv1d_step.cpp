// The kernels of causal_conv1d_step, compiled for each instruction set.
#include "causal_conv1d_step.h"

#define RECGRELA_KERNELS "causal_conv1d_step.inl"
#include "foreach_isa.inl"

RECGRELA_DEFINE_KERNELS(CausalConv1dStepKernels, causal_conv1d_step_kernels)
