// Kernels of selective_scan for bfloat16.
#include "kernels/selective_scan/backward.cuh"
#include "kernels/selective_scan/forward.cuh"

template struct recgrela::cuda::SelectiveKernels<recgrela::cuda::bf16>;
