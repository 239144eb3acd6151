// Kernels of selective_scan for float32.
#include "kernels/selective_scan/backward.cuh"
#include "kernels/selective_scan/forward.cuh"

template struct recgrela::cuda::SelectiveKernels<float>;
