// Launches the kernels of linear_cross_entropy for one element type.
#pragma once

#include "kernels/linear_cross_entropy/gradients.cuh"
#include "kernels/linear_cross_entropy/scale.cuh"
#include "kernels/linear_cross_entropy/softmax.cuh"

namespace recgrela::cuda {

constexpr size_t kBlockBytes = 2 * sizeof(int);  // of EntropyBlock

// Calls f(width) with the width of the kernels as a constant.
template <typename F>
cudaError_t with_entropy_width(int dim, F f) {
  return dispatch_value<32, 64, 128, 256>(entropy_width(dim), f);
}

template <typename E>
cudaError_t EntropyKernels<E>::prepare(const EntropyPlan& p, cudaStream_t stream) {
  const size_t bytes = p.column_sums ? kPrepareThreads / (p.dim / 4) * (p.dim + 1) * sizeof(float) : 0;
  return launch(prepare_kernel<E>, p.prepare_blocks + p.hidden_blocks, kPrepareThreads, bytes, stream, p);
}

template <typename E>
cudaError_t EntropyKernels<E>::softmax(const EntropyPlan& p, cudaStream_t stream) {
  return with_entropy_width(p.dim, [&](auto width) {
    using Stream = EntropyStream<E, width>;
    const auto kernel = p.d_hidden ? softmax_kernel<E, width, true> : softmax_kernel<E, width, false>;
    return launch(kernel, p.scores.blocks(), kEntropyThreads,
                  Stream::kSharedBytes + 2 * Stream::kStage * sizeof(float) + kBlockBytes, stream, p);
  });
}

template <typename E>
cudaError_t EntropyKernels<E>::gradients(const EntropyPlan& p, cudaStream_t stream) {
  return with_entropy_width(p.dim, [&](auto width) {
    if (p.items.blocks() == 0)
      return launch(finish_rows_kernel<E, width>, p.finish_blocks, kEntropyThreads, finish_bytes(width), stream, p);
    using Stream = EntropyStream<E, width>;
    const size_t bytes = Stream::kSharedBytes + Stream::kTiles.row_values * (sizeof(float) + sizeof(int)) + kBlockBytes;
    static_assert(Stream::kSharedBytes + Stream::kTiles.row_values * 8 + kBlockBytes <= 99 * 1024);
    return launch(gradients_kernel<E, width>, p.items.blocks() + p.finish_blocks, kEntropyThreads, bytes, stream, p);
  });
}

template <typename E>
cudaError_t EntropyKernels<E>::scale(const LinearCrossEntropyScaleParams& p, cudaStream_t stream) {
  return launch_scale<E>(p, stream);
}

}  // namespace recgrela::cuda
