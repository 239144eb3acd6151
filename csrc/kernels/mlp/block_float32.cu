// Kernels of mlp_block for float32.
#include "kernels/mlp/block.cuh"

template struct recgrela::cuda::MlpBlockKernels<float>;
