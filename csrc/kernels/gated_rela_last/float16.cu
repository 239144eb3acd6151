// Kernels of gated_rela_last for float16.
#include "kernels/gated_rela_last/backward.cuh"
#include "kernels/gated_rela_last/forward.cuh"

template struct recgrela::cuda::LastKernels<recgrela::cuda::fp16>;
