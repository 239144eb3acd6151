// Kernels of mlp for float32.
#include "kernels/mlp/d_rows.cuh"
#include "kernels/mlp/d_weights.cuh"
#include "kernels/mlp/forward.cuh"

template struct recgrela::cuda::MlpKernels<float, 4>;
template struct recgrela::cuda::MlpKernels<float, 8>;
