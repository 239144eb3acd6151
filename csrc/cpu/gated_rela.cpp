// The kernels of gated_rela, compiled for each instruction set.
#include "gated_rela.h"

#define RECGRELA_KERNELS "gated_rela.inl"
#include "foreach_isa.inl"

RECGRELA_DEFINE_KERNELS(GatedRelaKernels, gated_rela_kernels)
