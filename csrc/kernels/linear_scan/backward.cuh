// Backward of linear_scan. It carries k_i = conj(a_i) g_i, where g_i = d_h_i + k_{i+1}, from the last row to the first:
// d_x_i = g_i, d_a_i = g_i conj(h_{i-1}), and the gradient of the initial state is k of the first row.
#pragma once

#include "kernels/linear_scan/forward.cuh"

namespace recgrela::cuda {

// sum += g conj(h)
template <bool kComplex, int N>
__device__ void add_product(const float (&g)[N], const float (&h)[N], float (&sum)[N]) {
  if constexpr (kComplex) {
#pragma unroll
    for (int i = 0; i < N; i += 2) {
      sum[i] += g[i] * h[i] + g[i + 1] * h[i + 1];
      sum[i + 1] += g[i + 1] * h[i] - g[i] * h[i + 1];
    }
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) sum[i] += g[i] * h[i];
  }
}

// Adds the sums of the block's segments in order and stores the block's partial sum.
template <typename E>
__device__ void store_partial(const ScanPlan& p, const ScanThread<E>& thread, const float (&d_a)[ScanThread<E>::N]) {
  constexpr int N = ScanThread<E>::N;
  __syncthreads();                                                 // all threads have read their segments
  float* const sums = reinterpret_cast<float*>(dynamic_shared());  // [N, threads]
#pragma unroll
  for (int i = 0; i < N; ++i) sums[i * kScanThreads + threadIdx.x] = d_a[i];
  __syncthreads();
  const int64_t first = int64_t{blockIdx.x % p.columns} * p.block_groups;
  for (int i = threadIdx.x; i < N * p.block_groups; i += kScanThreads) {
    const int group = i / N;
    const int64_t channel = (first + group) * N + i % N;
    if (channel >= p.width) continue;
    float sum = 0.f;
    for (int run = 0; run < p.runs; ++run) sum += sums[i % N * kScanThreads + run * p.block_groups + group];
    p.partials[thread.row_block * p.width + channel] = sum;
  }
}

template <typename E, bool kComplex, bool kPerStep>
__global__ void __launch_bounds__(kScanThreads, 2) scan_backward_kernel(const ScanPlan p) {
  constexpr int N = kScanGroup<E>;
  const ScanThread<E> thread(p);
  float d_a[N] = {};
  if (thread.valid) {
    const Segment& segment = thread.segment;
    Coefficients<E, kPerStep> coefficients(p, thread);
    const int64_t row0 = segment.is_first() ? segment.begin : -1;  // the sequence's first row, if it is in the segment
    const float zero[N] = {};
    float d_state[N];
    if (segment.count > 1) {
      thread.load_state(p.states, segment.slot, p.width, d_state);
    } else {
      thread.load_state(p.d_final_state, segment.sequence, p.width, d_state);
    }
    thread.template for_each_row<true>(
        [&](int64_t row, bool wanted) {
          LoadedRow<E> loaded{};
          loaded.x = thread.template load<E>(p.d_h, row, wanted);
          loaded.h = thread.template load<E>(p.h, row - 1, wanted && row != row0);
          coefficients.load(p, thread, row, wanted, loaded);
          return loaded;
        },
        [&](int64_t row, const LoadedRow<E>& loaded) {
          float grad[N], before[N];
          unpack(loaded.x, grad);
#pragma unroll
          for (int i = 0; i < N; ++i) grad[i] += d_state[i];
          thread.template store<E>(p.d_x, row, grad);
          if (row == row0) {
            thread.load_state(p.initial_state, segment.sequence, p.width, before);
          } else {
            unpack(loaded.h, before);
          }
          coefficients.set(loaded);
          if constexpr (kPerStep) {
            float product[N] = {};
            add_product<kComplex>(grad, before, product);
            thread.template store<float>(p.d_a, row, product);
          } else {
            add_product<kComplex>(grad, before, d_a);
          }
#pragma unroll
          for (int i = 0; i < N; ++i) d_state[i] = grad[i];
          advance<kComplex, true>(coefficients.a, zero, d_state);
        });
    if (segment.is_first() && p.d_initial_state)
      thread.store_state(p.d_initial_state, segment.sequence, p.width, d_state);
  }
  if constexpr (!kPerStep) store_partial(p, thread, d_a);
}

template <typename E, bool kComplex>
cudaError_t ScanKernels<E, kComplex>::backward(const ScanPlan& p, cudaStream_t stream) {
  auto kernel = p.per_step ? scan_backward_kernel<E, kComplex, true> : scan_backward_kernel<E, kComplex, false>;
  return launch_scan(kernel, p, kScanGroup<E> * kScanThreads, stream);
}

}  // namespace recgrela::cuda
