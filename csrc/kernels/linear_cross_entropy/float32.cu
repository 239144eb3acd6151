// Kernels of linear_cross_entropy for float32.
#include "kernels/linear_cross_entropy/run.cuh"

template struct recgrela::cuda::EntropyKernels<float>;
