// Kernels of linear for float32.
#include "kernels/linear/backward.cuh"
#include "kernels/linear/forward.cuh"

template struct recgrela::cuda::LinearKernels<float>;
