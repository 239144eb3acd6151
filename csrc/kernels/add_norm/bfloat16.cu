// Kernels of add_norm for bfloat16.
#include "kernels/add_norm/backward.cuh"
#include "kernels/add_norm/forward.cuh"

template struct recgrela::cuda::AddNormKernels<recgrela::cuda::bf16>;
