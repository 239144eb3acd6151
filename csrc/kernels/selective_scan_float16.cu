// The kernels of selective_scan for float16.
#include "kernels/selective_backward.cuh"
#include "kernels/selective_forward.cuh"

template struct recgrela::cuda::SelectiveKernels<recgrela::cuda::fp16>;
