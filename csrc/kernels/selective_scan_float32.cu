// The kernels of selective_scan for float32.
#include "kernels/selective_backward.cuh"
#include "kernels/selective_forward.cuh"

template struct recgrela::cuda::SelectiveKernels<float>;
