#include "kernels/rela_kernels.cuh"

template struct recgrela::cuda::RelaKernels<recgrela::cuda::bf16>;
