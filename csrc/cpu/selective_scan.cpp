// The kernels of selective_scan, compiled for each instruction set.
#include "selective_scan.h"

#define RECGRELA_KERNELS "selective_scan.inl"
#include "foreach_isa.inl"

RECGRELA_DEFINE_KERNELS(SelectiveScanKernels, selective_scan_kernels)
