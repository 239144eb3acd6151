// Kernels of causal_conv1d for float32.
#include "kernels/causal_conv1d/backward.cuh"
#include "kernels/causal_conv1d/forward.cuh"
#include "kernels/causal_conv1d/history.cuh"

template struct recgrela::cuda::ConvKernels<float>;
