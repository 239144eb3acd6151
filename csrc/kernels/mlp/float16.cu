// Kernels of mlp for float16.
#include "kernels/mlp/d_rows.cuh"
#include "kernels/mlp/d_weights.cuh"
#include "kernels/mlp/forward.cuh"

template struct recgrela::cuda::MlpKernels<recgrela::cuda::fp16, 4>;
template struct recgrela::cuda::MlpKernels<recgrela::cuda::fp16, 8>;
template struct recgrela::cuda::MlpKernels<recgrela::cuda::fp16, 16>;
