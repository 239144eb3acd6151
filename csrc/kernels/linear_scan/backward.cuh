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
template <typename Thread>
__device__ void store_partial(const ScanPlan& p, const Thread& thread, const float (&d_a)[Thread::N]) {
  constexpr int N = Thread::N;
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
__global__ void __launch_bounds__(kScanThreads, kScanBlocks) scan_backward_kernel(const ScanPlan p) {
  constexpr int N = kScanGroup<kComplex>;
  const ScanThread<kComplex> thread(p);
  float d_a[N] = {};
  if (thread.valid) {
    const Segment& segment = thread.segment;
    Coefficients<N, kPerStep> coefficients(p, thread);
    const float zero[N] = {};
    float d_state[N];
    if (segment.count > 1) {
      thread.load_state(p.states, segment.slot, p.width, d_state);
    } else {
      thread.load_state(p.d_final_state, segment.sequence, p.width, d_state);
    }
    dispatch_whole(thread, [&](auto whole) {
      constexpr bool kWhole = decltype(whole)::value;
      struct Loaded {
        Packed<E, N> d_h, h;
        Packed<float, N> a;
      };
      const int64_t last = segment.end - 1;
      auto d_h = thread.template rows_from<const E, true, kWhole>(p.d_h, last);
      auto h = thread.template rows_from<const E, true, kWhole>(p.h, last - 1);
      auto a = thread.template rows_from<const float, true, kWhole>(p.a, kPerStep ? last : 0);
      auto d_x = thread.template rows_from<E, true, kWhole>(p.d_x, last);
      auto d_a_row = thread.template rows_from<float, true, kWhole>(p.d_a, kPerStep ? last : 0);
      // Stores the gradients of a row, given h of the row before it.
      auto use = [&](const Loaded& row, const float (&before)[N]) {
        float grad[N];
        unpack(row.d_h, grad);
        if constexpr (kPerStep) unpack(row.a, coefficients.a);
#pragma unroll
        for (int i = 0; i < N; ++i) grad[i] += d_state[i];
        d_x.store(grad);
        if constexpr (kPerStep) {
          float product[N] = {};
          add_product<kComplex>(grad, before, product);
          d_a_row.store(product);
        } else {
          add_product<kComplex>(grad, before, d_a);
        }
#pragma unroll
        for (int i = 0; i < N; ++i) d_state[i] = grad[i];
        advance<kComplex, true>(coefficients.a, zero, d_state);
      };
      // The first row of a sequence has no row before it.
      const bool has_first = segment.is_first() && segment.end > segment.begin;
      for_each_row<kWhole, batch_rows(2 * N * int{sizeof(E)} / 4 + (kPerStep ? N : 0))>(
          segment.end - segment.begin - has_first,
          [&] {
            Loaded row{};
            row.d_h = d_h.load();
            row.h = h.load();
            if constexpr (kPerStep) row.a = a.load();
            return row;
          },
          [&](int rows) {
            d_h.prefetch(rows), h.prefetch(rows);
            if constexpr (kPerStep) a.prefetch(rows);
          },
          [&](const Loaded& row) {
            float before[N];
            unpack(row.h, before);
            use(row, before);
          });
      if (has_first) {
        Loaded row{};
        float before[N];
        row.d_h = d_h.load();
        if constexpr (kPerStep) row.a = a.load();
        thread.load_state(p.initial_state, segment.sequence, p.width, before);
        use(row, before);
      }
    });
    if (segment.is_first() && p.d_initial_state)
      thread.store_state(p.d_initial_state, segment.sequence, p.width, d_state);
  }
  if constexpr (!kPerStep) store_partial(p, thread, d_a);
}

template <typename E, bool kComplex>
cudaError_t ScanKernels<E, kComplex>::backward(const ScanPlan& p, cudaStream_t stream) {
  auto kernel = p.per_step ? scan_backward_kernel<E, kComplex, true> : scan_backward_kernel<E, kComplex, false>;
  return launch_scan(kernel, p, kScanGroup<kComplex> * kScanThreads, stream);
}

}  // namespace recgrela::cuda
