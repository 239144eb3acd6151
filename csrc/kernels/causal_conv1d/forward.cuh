// Forward of causal_conv1d. A thread iterates over its run, with the last K - 1 rows in registers.
#pragma once

#include "kernels/causal_conv1d/run.cuh"

namespace recgrela::cuda {

template <typename E, int K>
__global__ void __launch_bounds__(kConvThreads, 2) conv_forward_kernel(const ConvPlan p) {
  constexpr int N = kForwardGroup<E>, kAhead = 4;
  check_sequences(p.sequences);
  const Run<E, N, K> run(p);
  int64_t* const first_offset = reinterpret_cast<int64_t*>(dynamic_shared());
  int32_t* starts = reinterpret_cast<int32_t*>(first_offset + 1);
  find_boundaries(p.sequences, run.first_boundary, p.runs * p.run_rows + K - 1, starts, nullptr, first_offset);
  if (run.rows == 0) return;

  starts += run.begin - run.first_boundary;
  const ConvWeights<N, K> weights(p, run.channel, run.valid);
  const E* const x = static_cast<const E*>(p.x.data) + run.begin * p.x.stride + run.channel;
  E* const y = static_cast<E*>(p.y.data) + run.begin * p.y.stride + run.channel;
  float rows[K][N] = {};
  Packed<E, N> ahead[kAhead];
#pragma unroll
  for (int i = 0; i < kAhead; ++i) ahead[i] = run.load(x, p.x.stride, run.low + i, run.low, run.rows);
#pragma unroll 1
  for (int first = run.low; first < run.rows; first += kAhead) {
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int row = first + i;
      if (row < run.rows) {
        const int32_t start = starts[row];
        if (start >= 0) load_history<E>(p, start, run.channel, run.valid, rows);
        unpack(ahead[i], rows[K - 1]);
        if (row >= 0) {
          float out[N];
          weights.apply(rows, out);
          if (p.silu) {
#pragma unroll
            for (int c = 0; c < N; ++c) out[c] *= sigmoid(out[c]);
          }
          store_row(y + row * p.y.stride, run.valid, run.whole, out);
        }
        shift_up(rows);
      }
      ahead[i] = run.load(x, p.x.stride, row + kAhead, INT32_MIN, run.rows);
    }
  }
}

template <typename E>
cudaError_t ConvKernels<E>::forward(const ConvPlan& p, cudaStream_t stream) {
  return dispatch_kernel_size(p.kernel_size, [&](auto kernel_size) {
    constexpr int K = decltype(kernel_size)::value;
    const size_t boundaries = 8 + 4 * (static_cast<size_t>(p.runs) * p.run_rows + K - 1);
    return launch(conv_forward_kernel<E, K>, p.row_blocks * p.columns, kConvThreads, boundaries, stream, p);
  });
}

}  // namespace recgrela::cuda
