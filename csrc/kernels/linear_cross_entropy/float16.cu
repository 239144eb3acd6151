// Kernels of linear_cross_entropy for float16.
#include "kernels/linear_cross_entropy/run.cuh"

template struct recgrela::cuda::EntropyKernels<recgrela::cuda::fp16>;
