// Kernels of rela_projections for bfloat16.
#include "kernels/rela_projections/backward.cuh"
#include "kernels/rela_projections/forward.cuh"

template struct recgrela::cuda::RelaProjectionsKernels<recgrela::cuda::bf16>;
