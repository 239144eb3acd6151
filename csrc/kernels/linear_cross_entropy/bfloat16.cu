// Kernels of linear_cross_entropy for bfloat16.
#include "kernels/linear_cross_entropy/run.cuh"

template struct recgrela::cuda::EntropyKernels<recgrela::cuda::bf16>;
