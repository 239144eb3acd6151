// Sums of partial results in a fixed order: the result does not depend on the schedule of threads or on the device.
#pragma once

#include "kernels/common/host.cuh"

namespace recgrela::cuda {

constexpr int kReduceThreads = 1024;

template <typename Store>
struct PartialSums {
  const float* partials;  // [count, size]
  int64_t count, size;
  Store store;  // store(column, sum) writes the sum of a column
};

struct StoreFloats {
  float* sums;  // [size]
  __device__ void operator()(int64_t column, float sum) const { sums[column] = sum; }
};

// Adds the rows of `partials`. A block adds kColumns columns: each thread adds every n-th element of one column, where
// n is the number of threads per column; one thread per column then adds their sums in order.
template <int kColumns, typename Store>
__global__ void __launch_bounds__(kReduceThreads) add_partials_kernel(const PartialSums<Store> p) {
  constexpr int kThreadsPerColumn = kReduceThreads / kColumns;
  float* const sums = reinterpret_cast<float*>(dynamic_shared());
  const int first = static_cast<int>(threadIdx.x) / kColumns;
  const int64_t column = int64_t{blockIdx.x} * kColumns + threadIdx.x % kColumns;
  float sum = 0.f;
  if (column < p.size) {
#pragma unroll 8
    for (int64_t i = first; i < p.count; i += kThreadsPerColumn) sum += p.partials[i * p.size + column];
  }
  sums[threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.x >= kColumns || column >= p.size) return;
  sum = 0.f;
  for (int i = 0; i < kThreadsPerColumn; ++i) sum += sums[i * kColumns + threadIdx.x];
  p.store(column, sum);
}

// Adds partial sums. With kColumns = 32, blocks read whole cache lines; with 8, more blocks share few columns.
template <int kColumns = 32, typename Store>
cudaError_t add_partials(const float* partials, int64_t count, int64_t size, Store store, cudaStream_t stream) {
  return launch(add_partials_kernel<kColumns, Store>, ceil_div(size, kColumns), kReduceThreads,
                kReduceThreads * sizeof(float), stream, PartialSums<Store>{partials, count, size, store});
}

}  // namespace recgrela::cuda
