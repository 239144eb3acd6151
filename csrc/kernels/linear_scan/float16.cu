// Kernels of linear_scan for float16.
#include "kernels/linear_scan/backward.cuh"
#include "kernels/linear_scan/forward.cuh"

template struct recgrela::cuda::ScanKernels<recgrela::cuda::fp16, false>;
