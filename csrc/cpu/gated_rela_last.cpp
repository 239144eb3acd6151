// The kernels of gated_rela_last, compiled for each instruction set.
#include "gated_rela_last.h"

#define RECGRELA_KERNELS "gated_rela_last.inl"
#include "foreach_isa.inl"

RECGRELA_DEFINE_KERNELS(GatedRelaLastKernels, gated_rela_last_kernels)
