// Kernels of mlp_block for bfloat16.
#include "kernels/mlp/block.cuh"

template struct recgrela::cuda::MlpBlockKernels<recgrela::cuda::bf16>;
