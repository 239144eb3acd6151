// Kernels of linear for float16.
#include "kernels/linear/backward.cuh"
#include "kernels/linear/forward.cuh"

template struct recgrela::cuda::LinearKernels<recgrela::cuda::fp16>;
