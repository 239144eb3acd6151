// Kernels of mlp_block for float16.
#include "kernels/mlp/block.cuh"

template struct recgrela::cuda::MlpBlockKernels<recgrela::cuda::fp16>;
