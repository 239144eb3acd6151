// The kernels of causal_conv1d, compiled for each instruction set.
#include "causal_conv1d.h"

#define RECGRELA_KERNELS "causal_conv1d.inl"
#include "foreach_isa.inl"

RECGRELA_DEFINE_KERNELS(CausalConv1dKernels, causal_conv1d_kernels)
