// Kernels of causal_conv1d for float16.
#include "kernels/causal_conv1d/backward.cuh"
#include "kernels/causal_conv1d/forward.cuh"
#include "kernels/causal_conv1d/history.cuh"

template struct recgrela::cuda::ConvKernels<recgrela::cuda::fp16>;
