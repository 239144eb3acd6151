// The kernels of linear_scan, compiled for each instruction set.
#include "linear_scan.h"

#define RECGRELA_KERNELS "linear_scan.inl"
#include "foreach_isa.inl"

RECGRELA_DEFINE_KERNELS(LinearScanKernels, linear_scan_kernels)
