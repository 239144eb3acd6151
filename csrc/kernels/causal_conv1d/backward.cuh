// Backward of causal_conv1d. A thread iterates over its run in batches of rows and over the K - 1 rows after it, with
// the unfinished gradients of the last K - 1 rows of x in registers.
#pragma once

#include <algorithm>

#include "kernels/causal_conv1d/boundaries.cuh"
#include "kernels/causal_conv1d/run.cuh"

namespace recgrela::cuda {

// Gradients of the weights and the bias of a group, summed over a run.
template <int K>
struct ConvWeightSums {
  static constexpr int N = kConvGroup;
  float weight[K][N] = {}, bias[N] = {};

  // Adds those of row `last` of rows, whose output has the gradient d.
  template <int M>
  __device__ void add(const float (&d)[N], const float (&rows)[M][N], int last) {
#pragma unroll
    for (int c = 0; c < N; ++c) {
      bias[c] += d[c];
#pragma unroll
      for (int k = 0; k < K; ++k) weight[k][c] += d[c] * rows[last - (K - 1) + k][c];
    }
  }

  // Adds the sums of the block's runs in order and stores the block's partial sum, times `scale`.
  __device__ void store(const ConvPlan& p, int64_t row_block, float scale) const {
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
      partial[value / N * p.channels + channel] = scale * sum;
    }
  }
};

// Adds the gradient of the final history of sequence b to the gradients of its last K - 1 rows, grad[first] and those
// that follow. Only `depth` of them are in the sequence.
template <typename E, int K, bool kWhole, int M>
__device__ void add_final_history_gradient(const ConvPlan& p, const Run& run, int64_t b, int depth, int first,
                                           float (&grad)[M][kConvGroup]) {
#pragma unroll
  for (int k = 0; k < K - 1; ++k) {
    float values[kConvGroup];
    load_history_row<E, K, kWhole>(p.d_final_history, p, run, b, k, K - 2 - k <= depth, values);
#pragma unroll
    for (int c = 0; c < kConvGroup; ++c) grad[first + k][c] += values[c];
  }
}

template <typename E, int K>
__global__ void __launch_bounds__(kConvThreads, kBackwardBlocks) conv_backward_kernel(const ConvPlan p) {
  constexpr int N = kConvGroup, kStep = kBackwardStep<E>, kRows = kStep * kBatchSteps, kReach = K > 2 ? K - 2 : 0;
  struct Loaded {
    Packed<E, N> x, d_y;
  };
  const Run run(p);
  auto x = run.rows_from<const E, true>(p.x, 0);
  auto d_y = run.rows_from<const E, true>(p.d_y, 0);
  auto d_x = run.rows_from<E, true>(p.d_x, 1 - K);
  auto load = [&] { return Loaded{x.load(), d_y.load()}; };
  // The first rows arrive while the block looks for boundaries.
  RowBatches<kRows, Loaded> batches(p.whole ? run.rows : 0);
  batches.load_first(load);
  batches.load_second(load);
  RowsBefore<E, K> before;
  before.load(p, run);
  const ConvWeights<E, K> weights(p, run);
  Boundaries<K, kStep, kReach> boundaries(p, run.first_row, p.d_final_history);

  ConvWeightSums<K> sums;
  if (run.rows > 0) {
    boundaries.move_to(run.number);
    before.replace(p, run, boundaries);
    // Rows of the sequence before the current one, up to K - 1. It may count rows of another sequence before the run,
    // since their gradients are not stored.
    int depth = K - 1;
    float d_before[K][N] = {};  // gradients of the K - 1 rows before the current one, so far
    int row = 0;
    auto use = [&](auto count, const Loaded* loaded, auto& to) {
      constexpr int M = decltype(count)::value;
      float rows[K - 1 + M][N], d[M][N], grad[K - 1 + M][N];
      before.template put<M>(rows);
#pragma unroll
      for (int k = 0; k < K - 1; ++k)
#pragma unroll
        for (int c = 0; c < N; ++c) grad[k][c] = d_before[k][c];
#pragma unroll
      for (int k = 0; k < M; ++k) unpack(loaded[k].x, rows[K - 1 + k]), unpack(loaded[k].d_y, d[k]);
      auto differentiate = [&](int k) {  // SiLU
        float out[N];
        weights.apply(rows, K - 1 + k, out);
#pragma unroll
        for (int c = 0; c < N; ++c) d[k][c] *= scaled_silu_grad<E>(out[c]);
      };
      if (M == 1 || boundaries.flag(row)) {
#pragma unroll
        for (int k = 0; k < M; ++k) {
          const int32_t ended = boundaries.end(row + k), start = boundaries.start(row + k);
          if (ended >= 0) add_final_history_gradient<E, K, (M > 1)>(p, run, ended, depth, k, grad);
          depth = depth < K - 1 ? depth + 1 : K - 1;
          if (start >= 0) {
            load_history<E, K, (M > 1)>(p, run, start, K - 1 + k, rows);
            depth = 0;
          }
          if (p.silu) differentiate(k);
          if (row + k < run.rows) sums.add(d[k], rows, K - 1 + k);
#pragma unroll
          for (int j = 0; j < K; ++j)
#pragma unroll
            for (int c = 0; c < N; ++c) {
              const float term = K - 1 - j <= depth ? weights.weight[j][c] * d[k][c] : 0.f;
              grad[k + j][c] = j == K - 1 ? term : grad[k + j][c] + term;
            }
        }
      } else {
        if (p.silu) {
#pragma unroll
          for (int k = 0; k < M; ++k) differentiate(k);
        }
#pragma unroll
        for (int k = 0; k < M; ++k) {
          sums.add(d[k], rows, K - 1 + k);
#pragma unroll
          for (int j = 0; j < K; ++j)
#pragma unroll
            for (int c = 0; c < N; ++c) {
              const float term = weights.weight[j][c] * d[k][c];
              grad[k + j][c] = j == K - 1 ? term : grad[k + j][c] + term;
            }
        }
        depth = K - 1;
      }
#pragma unroll
      for (int k = 0; k < M; ++k) to.store(grad[k], row + k >= K - 1);
      before.template take<M>(rows);
#pragma unroll
      for (int k = 0; k < K - 1; ++k)
#pragma unroll
        for (int c = 0; c < N; ++c) d_before[k][c] = grad[M + k][c];
      row += M;
    };
    batches.use_all(load, [&](const Loaded(&batch)[kRows]) {
#pragma unroll
      for (int k = 0; k < kRows; k += kStep) use(std::integral_constant<int, kStep>{}, batch + k, d_x);
    });
    auto x_each = run.rows_from<const E, false>(p.x, row);
    auto d_y_each = run.rows_from<const E, false>(p.d_y, row);
    auto d_x_each = run.rows_from<E, false>(p.d_x, row + 1 - K);
#pragma unroll 1
    while (row < run.rows + K - 1) {  // the rest of the last run, the rows after a run, and groups that are not whole
      if (row + kPrefetchRows < run.rows) x_each.prefetch(kPrefetchRows), d_y_each.prefetch(kPrefetchRows);
      Loaded loaded{};
      if (run.begin + row < p.sequences.num_rows) loaded = {x_each.load(), d_y_each.load()};
      use(std::integral_constant<int, 1>{}, &loaded, d_x_each);
    }
  }
  sums.store(p, run.row_block, weights.scale);
}

template <typename E>
cudaError_t ConvKernels<E>::backward(const ConvPlan& p, cudaStream_t stream) {
  return dispatch_kernel_size(p.kernel_size, [&](auto kernel_size) {
    constexpr int K = decltype(kernel_size)::value;
    const size_t boundaries = Boundaries<K, kBackwardStep<E>, 0>::size(p, p.d_final_history != nullptr);
    const size_t sums = sizeof(float) * (K + 1) * kConvGroup * kConvThreads;
    return launch(conv_backward_kernel<E, K>, p.row_blocks * p.columns, kConvThreads, std::max(boundaries, sums),
                  stream, p);
  });
}

}  // namespace recgrela::cuda
