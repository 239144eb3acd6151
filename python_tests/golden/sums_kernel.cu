// sums_kernel<float, 16>: exponentials of rows, 4 at a time; a row has `steps` products more; `bias` is optional.
namespace recgrela::cuda {
template <typename E, int kSize>
__global__ void __launch_bounds__(96) sums_kernel(const E* x, const E* bias, E* y, int tiles, int steps) {
  __shared__ E shared[32];
  shared[threadIdx.x] = x[threadIdx.x];
  float sum = 0.f;
#pragma unroll 1
  for (int t = 0; t < tiles; ++t) {
#pragma unroll
    for (int r = 0; r < 4; ++r) sum += exp2f(x[(t * 4 + r) * 32 + threadIdx.x]);
    if (bias) sum += bias[t];
#pragma unroll 1
    for (int s = 0; s < steps; ++s) sum = sum * shared[s] + 1.f;
    y[t * 32 + threadIdx.x] = sum;
  }
}
template __global__ void __launch_bounds__(96) sums_kernel<float, 16>(const float*, const float*, float*, int, int);
}
