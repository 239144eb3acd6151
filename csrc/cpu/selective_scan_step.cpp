// The kernels of selective_scan_step, compiled for each instruction set.
#include "selective_scan_step.h"

#define RECGRELA_KERNELS "selective_scan_step.inl"
#include "foreach_isa.inl"

RECGRELA_DEFINE_KERNELS(SelectiveScanStepKernels, selective_scan_step_kernels)
