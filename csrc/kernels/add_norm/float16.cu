// Kernels of add_norm for float16.
#include "kernels/add_norm/backward.cuh"
#include "kernels/add_norm/forward.cuh"

template struct recgrela::cuda::AddNormKernels<recgrela::cuda::fp16>;
