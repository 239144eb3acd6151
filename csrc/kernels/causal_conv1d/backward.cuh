// Backward of causal_conv1d. A thread iterates over its run and the K - 1 rows after it, with the gradients of the last
// K rows of x in registers.
#pragma once

#include <algorithm>

#include "kernels/causal_conv1d/run.cuh"

namespace recgrela::cuda {

// Gradients of the weights and the bias of a group, summed over a run.
template <int N, int K>
struct ConvWeightSums {
  float weight[K][N] = {}, bias[N] = {};

  __device__ void add(const float (&d)[N], const float (&rows)[K][N]) {
#pragma unroll
    for (int c = 0; c < N; ++c) {
      bias[c] += d[c];
#pragma unroll
      for (int k = 0; k < K; ++k) weight[k][c] += d[c] * rows[k][c];
    }
  }

  // Adds the sums of the block's runs in order and stores the block's partial sum.
  __device__ void store(const ConvPlan& p, int64_t row_block) const {
    __syncthreads();                                                 // all threads have read the boundaries
    float* const sums = reinterpret_cast<float*>(dynamic_shared());  // [K + 1, N, threads]
#pragma unroll
    for (int c = 0; c < N; ++c) {
#pragma unroll
      for (int k = 0; k < K; ++k) sums[(k * N + c) * kConvThreads + threadIdx.x] = weight[k][c];
      sums[(K * N + c) * kConvThreads + threadIdx.x] = bias[c];
    }
    __syncthreads();
    float* const partial = p.partials + row_block * (K + 1) * p.channels;
    const int64_t block_channel = int64_t{blockIdx.x % p.columns} * p.block_groups * N;
    for (int i = threadIdx.x; i < (K + 1) * N * p.block_groups; i += kConvThreads) {
      const int value = i / p.block_groups, group = i % p.block_groups;
      const int64_t channel = block_channel + group * N + value % N;
      if (channel >= p.channels) continue;
      float sum = 0.f;
      for (int r = 0; r < p.runs; ++r) sum += sums[value * kConvThreads + r * p.block_groups + group];
      partial[value / N * p.channels + channel] = sum;
    }
  }
};

// Adds the gradient of the final history of sequence b to the K - 1 rows before the current one. Only `depth` of them
// are in the sequence.
template <typename E, int N, int K>
__device__ void add_final_history_gradient(const ConvPlan& p, const Run<E, N, K>& run, int64_t b, int depth,
                                           float (&grad)[K][N]) {
#pragma unroll
  for (int k = 0; k < K - 1; ++k) {
    float values[N];
    load_each(static_cast<const E*>(p.d_final_history) + (b * (K - 1) + k) * p.channels + run.channel,
              K - 2 - k <= depth ? run.valid : 0, values);
#pragma unroll
    for (int c = 0; c < N; ++c) grad[k][c] += values[c];
  }
}

template <typename E, int K>
__global__ void __launch_bounds__(kConvThreads, 2) conv_backward_kernel(const ConvPlan p) {
  constexpr int N = kBackwardGroup, kAhead = 8 / sizeof(E);
  const Run<E, N, K> run(p);
  int64_t* const first_offset = reinterpret_cast<int64_t*>(dynamic_shared());
  int32_t* starts = reinterpret_cast<int32_t*>(first_offset + 1);
  const int count = p.runs * p.run_rows + 2 * (K - 1);
  find_boundaries(p.sequences, run.first_boundary, count, starts, p.d_final_history ? starts + count : nullptr,
                  first_offset);

  ConvWeightSums<N, K> weight_sums;
  if (run.rows > 0) {
    starts += run.begin - run.first_boundary;
    const ConvWeights<N, K> weights(p, run.channel, run.valid);
    const E* const x = static_cast<const E*>(p.x.data) + run.begin * p.x.stride + run.channel;
    const E* const d_y = static_cast<const E*>(p.d_y.data) + run.begin * p.d_y.stride + run.channel;
    E* const d_x = static_cast<E*>(p.d_x.data) + run.begin * p.d_x.stride + run.channel;
    float rows[K][N] = {};
    float grad[K][N] = {};  // d_x of the rows row - K + 1 .. row, so far
    int depth = K - 1;      // rows of the sequence before the current one, up to K - 1
    Packed<E, N> x_ahead[kAhead], d_y_ahead[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      x_ahead[i] = run.load(x, p.x.stride, run.low + i, run.low, run.high);
      d_y_ahead[i] = run.load(d_y, p.d_y.stride, run.low + i, 0, run.high);
    }
#pragma unroll 1
    for (int first = run.low; first < run.rows + K - 1; first += kAhead) {
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        const int row = first + i;
        if (row < run.rows + K - 1) {
          if (p.d_final_history) {
            const int32_t ended = starts[count + row];
            if (ended >= 0) add_final_history_gradient(p, run, ended, depth, grad);
          }
          const int32_t start = starts[row];
          depth = depth < K - 1 ? depth + 1 : K - 1;
          if (start >= 0) {
            load_history<E>(p, start, run.channel, run.valid, rows);
            depth = 0;
          }
          unpack(x_ahead[i], rows[K - 1]);
          float d[N];
          unpack(d_y_ahead[i], d);  // zeros before the run and after the last row
          if (p.silu) {
            float out[N];
            weights.apply(rows, out);
#pragma unroll
            for (int c = 0; c < N; ++c) {
              const float s = sigmoid(out[c]);
              d[c] *= silu_grad(s, out[c] * s);
            }
          }
          if (row < run.rows) weight_sums.add(d, rows);
#pragma unroll
          for (int k = 0; k < K; ++k) {
            if (K - 1 - k <= depth) {
#pragma unroll
              for (int c = 0; c < N; ++c) grad[k][c] += weights.weight[k][c] * d[c];
            }
          }
          if (row >= K - 1) store_row(d_x + (row - (K - 1)) * p.d_x.stride, run.valid, run.whole, grad[0]);
          shift_up(rows);
          shift_up(grad);
#pragma unroll
          for (int c = 0; c < N; ++c) grad[K - 1][c] = 0.f;
        }
        x_ahead[i] = run.load(x, p.x.stride, row + kAhead, INT32_MIN, run.high);
        d_y_ahead[i] = run.load(d_y, p.d_y.stride, row + kAhead, 0, run.high);
      }
    }
  }
  weight_sums.store(p, run.row_block);
}

template <typename E>
cudaError_t ConvKernels<E>::backward(const ConvPlan& p, cudaStream_t stream) {
  return dispatch_kernel_size(p.kernel_size, [&](auto kernel_size) {
    constexpr int K = decltype(kernel_size)::value;
    const size_t rows = static_cast<size_t>(p.runs) * p.run_rows + 2 * (K - 1);
    const size_t boundaries = 8 + (p.d_final_history ? 8 : 4) * rows;
    const size_t sums = sizeof(float) * (K + 1) * kBackwardGroup * kConvThreads;
    return launch(conv_backward_kernel<E, K>, p.row_blocks * p.columns, kConvThreads, std::max(boundaries, sums),
                  stream, p);
  });
}

}  // namespace recgrela::cuda
