// Kernels of linear for bfloat16.
#include "kernels/linear/backward.cuh"
#include "kernels/linear/forward.cuh"

template struct recgrela::cuda::LinearKernels<recgrela::cuda::bf16>;
