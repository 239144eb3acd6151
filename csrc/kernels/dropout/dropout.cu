// dropout: a thread reads 16 bytes, hashes the indices of their elements and writes 16 bytes.
#include <algorithm>

#include "kernels/common/dropout.cuh"
#include "kernels/common/host.cuh"
#include "kernels/common/packed.cuh"
#include "kernels/dropout/params.h"

namespace recgrela::cuda {
namespace {

constexpr int kThreads = 256, kBlocksPerMultiprocessor = 8;

template <typename E>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor) dropout_kernel(const DropoutParams p) {
  constexpr int N = 16 / sizeof(E);
  const DropoutHash hash(p.dropout);
  const int64_t step = int64_t{gridDim.x} * kThreads * N;
#pragma unroll 1
  for (int64_t i = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * N; i < p.numel; i += step) {
    const E* const x = static_cast<const E*>(p.x) + i;
    const int valid = static_cast<int>(min(int64_t{N}, p.numel - i));
    float values[N];
    if (valid == N) {
      unpack(load_packed<E, N>(x), values);
    } else {
      load_each(x, valid, values);
    }
    bool kept[N];
    hash.keep_next(static_cast<uint32_t>(i), kept);
#pragma unroll
    for (int j = 0; j < N; ++j) values[j] = kept[j] ? values[j] * hash.scale() : 0.f;
    store_row(static_cast<E*>(p.y) + i, valid, valid == N, values);
  }
}

}  // namespace

cudaError_t dropout(const DropoutParams& p, cudaStream_t stream) {
  return dispatch_dtype(p.dtype, [&](auto element) {
    using E = decltype(element);
    const int64_t blocks = std::min<int64_t>(ceil_div(p.numel * size_of(p.dtype), int64_t{16} * kThreads),
                                             int64_t{kBlocksPerMultiprocessor} * multiprocessors());
    return launch(dropout_kernel<E>, blocks, kThreads, 0, stream, p);
  });
}

}  // namespace recgrela::cuda
