// The backward of linear_cross_entropy: gradients times d_loss, which is in device memory.
#pragma once

#include "kernels/common/packed.cuh"
#include "kernels/linear_cross_entropy/plan.cuh"

namespace recgrela::cuda {

constexpr int kScaleThreads = 256, kScaleVectors = 4;  // vectors of 16 bytes per thread

template <typename T>
__device__ void scale_block(const LinearCrossEntropyScaleParams::Gradient& g, int64_t block, float factor) {
  constexpr int kVector = 16 / sizeof(T);
  const T* const from = static_cast<const T*>(g.from);
  T* const to = static_cast<T*>(g.to);
#pragma unroll
  for (int i = 0; i < kScaleVectors; ++i) {
    const int64_t first = ((block * kScaleVectors + i) * kScaleThreads + threadIdx.x) * kVector;
    if (first >= g.size) continue;
    const int valid = g.size - first < kVector ? static_cast<int>(g.size - first) : kVector;
    float x[kVector];
    if (valid == kVector)
      unpack(*reinterpret_cast<const Packed<T, kVector>*>(from + first), x);
    else
      load_each(from + first, valid, x);
#pragma unroll
    for (float& element : x) element *= factor;
    store_row(to + first, valid, valid == kVector, x);
  }
}

template <typename T>
int64_t scale_blocks(const LinearCrossEntropyScaleParams::Gradient& g) {
  return ceil_div(g.size * int64_t{sizeof(T)}, int64_t{16} * kScaleVectors * kScaleThreads);
}

struct EntropyScale : LinearCrossEntropyScaleParams {
  int64_t blocks[kNumGradients];  // of each gradient
};

template <typename E>
__global__ void __launch_bounds__(kScaleThreads) scale_kernel(const EntropyScale p) {
  const float factor = *p.d_loss;
  const int64_t block = blockIdx.x;
  if (block < p.blocks[0]) {
    scale_block<E>(p.gradients[0], block, factor);
  } else if (block < p.blocks[0] + p.blocks[1]) {
    scale_block<float>(p.gradients[1], block - p.blocks[0], factor);
  } else {
    scale_block<float>(p.gradients[2], block - p.blocks[0] - p.blocks[1], factor);
  }
}

template <typename E>
cudaError_t launch_scale(const LinearCrossEntropyScaleParams& params, cudaStream_t stream) {
  EntropyScale p;
  static_cast<LinearCrossEntropyScaleParams&>(p) = params;
  p.blocks[0] = scale_blocks<E>(p.gradients[0]);
  p.blocks[1] = scale_blocks<float>(p.gradients[1]), p.blocks[2] = scale_blocks<float>(p.gradients[2]);
  return launch(scale_kernel<E>, p.blocks[0] + p.blocks[1] + p.blocks[2], kScaleThreads, 0, stream, p);
}

}  // namespace recgrela::cuda
