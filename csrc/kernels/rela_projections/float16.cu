// Kernels of rela_projections for float16.
#include "kernels/rela_projections/backward.cuh"
#include "kernels/rela_projections/forward.cuh"

template struct recgrela::cuda::RelaProjectionsKernels<recgrela::cuda::fp16>;
