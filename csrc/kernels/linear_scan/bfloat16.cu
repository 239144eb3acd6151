// Kernels of linear_scan for bfloat16.
#include "kernels/linear_scan/backward.cuh"
#include "kernels/linear_scan/forward.cuh"

template struct recgrela::cuda::ScanKernels<recgrela::cuda::bf16, false>;
