// Kernels of mlp for bfloat16.
#include "kernels/mlp/d_rows.cuh"
#include "kernels/mlp/d_weights.cuh"
#include "kernels/mlp/forward.cuh"

template struct recgrela::cuda::MlpKernels<recgrela::cuda::bf16, 4>;
template struct recgrela::cuda::MlpKernels<recgrela::cuda::bf16, 8>;
template struct recgrela::cuda::MlpKernels<recgrela::cuda::bf16, 16>;
