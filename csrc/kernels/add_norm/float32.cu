// Kernels of add_norm for float32.
#include "kernels/add_norm/backward.cuh"
#include "kernels/add_norm/forward.cuh"

template struct recgrela::cuda::AddNormKernels<float>;
