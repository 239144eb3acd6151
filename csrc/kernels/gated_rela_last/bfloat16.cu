// Kernels of gated_rela_last for bfloat16.
#include "kernels/gated_rela_last/backward.cuh"
#include "kernels/gated_rela_last/forward.cuh"

template struct recgrela::cuda::LastKernels<recgrela::cuda::bf16>;
