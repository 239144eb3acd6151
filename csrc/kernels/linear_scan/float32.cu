// Kernels of linear_scan for float32 and complex64.
#include "kernels/linear_scan/backward.cuh"
#include "kernels/linear_scan/forward.cuh"

template struct recgrela::cuda::ScanKernels<float, false>;
template struct recgrela::cuda::ScanKernels<float, true>;
