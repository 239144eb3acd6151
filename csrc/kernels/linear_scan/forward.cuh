// Forward of linear_scan, and the final states of segments that start from zero, in both directions.
#pragma once

#include <algorithm>

#include "kernels/linear_scan/thread.cuh"

namespace recgrela::cuda {

// Computes the final state of a segment that starts from a zero state, and the product of its coefficients. kReverse
// does so for the gradient k_i = conj(a_i) (d_h_i + k_{i+1}), from the last row to the first.
template <typename E, bool kComplex, bool kPerStep, bool kReverse>
__global__ void __launch_bounds__(kScanThreads, kScanBlocks) scan_sum_segments_kernel(const ScanPlan p) {
  constexpr int N = kScanGroup<kComplex>;
  const ScanThread<kComplex> thread(p);
  if (!thread.valid || (kReverse ? thread.segment.is_first() : thread.segment.is_last())) return;
  Coefficients<N, kPerStep> coefficients(p, thread);
  const float zero[N] = {};
  float state[N] = {}, product[N];
#pragma unroll
  for (int i = 0; i < N; ++i) product[i] = kComplex && i % 2 ? 0.f : 1.f;
  dispatch_whole(thread, [&](auto whole) {
    constexpr bool kWhole = decltype(whole)::value;
    struct Loaded {
      Packed<E, N> x;
      Packed<float, N> a;
    };
    const int64_t first = kReverse ? thread.segment.end - 1 : thread.segment.begin;
    auto x = thread.template rows_from<const E, kReverse, kWhole>(kReverse ? p.d_h : p.x, first);
    auto a = thread.template rows_from<const float, kReverse, kWhole>(p.a, kPerStep ? first : 0);
    for_each_row<kWhole, batch_rows(N * int{sizeof(E)} / 4 + (kPerStep ? N : 0))>(
        thread.segment.end - thread.segment.begin,
        [&] {
          Loaded row{};
          row.x = x.load();
          if constexpr (kPerStep) row.a = a.load();
          return row;
        },
        [&](int rows) {
          x.prefetch(rows);
          if constexpr (kPerStep) a.prefetch(rows);
        },
        [&](const Loaded& row) {
          float values[N];
          unpack(row.x, values);
          if constexpr (kPerStep) unpack(row.a, coefficients.a);
          if constexpr (kReverse) {
#pragma unroll
            for (int i = 0; i < N; ++i) state[i] += values[i];
            advance<kComplex, true>(coefficients.a, zero, state);
          } else {
            advance<kComplex, false>(coefficients.a, values, state);
          }
          advance<kComplex, kReverse>(coefficients.a, zero, product);
        });
  });
  thread.store_state(p.states, thread.segment.slot, p.width, state);
  thread.store_state(p.products, thread.segment.slot, p.width, product);
}

template <typename E, bool kComplex, bool kPerStep>
__global__ void __launch_bounds__(kScanThreads, kScanBlocks) scan_forward_kernel(const ScanPlan p) {
  constexpr int N = kScanGroup<kComplex>;
  check_sequences(p.sequences);
  const ScanThread<kComplex> thread(p);
  if (!thread.valid) return;
  const Segment& segment = thread.segment;
  Coefficients<N, kPerStep> coefficients(p, thread);
  float state[N];
  if (segment.count > 1) {
    thread.load_state(p.states, segment.slot, p.width, state);
  } else {
    thread.load_state(p.initial_state, segment.sequence, p.width, state);
  }
  dispatch_whole(thread, [&](auto whole) {
    constexpr bool kWhole = decltype(whole)::value;
    struct Loaded {
      Packed<E, N> x;
      Packed<float, N> a;
    };
    auto x = thread.template rows_from<const E, false, kWhole>(p.x, segment.begin);
    auto a = thread.template rows_from<const float, false, kWhole>(p.a, kPerStep ? segment.begin : 0);
    auto h = thread.template rows_from<E, false, kWhole>(p.h, segment.begin);
    for_each_row<kWhole, batch_rows(N * int{sizeof(E)} / 4 + (kPerStep ? N : 0))>(
        segment.end - segment.begin,
        [&] {
          Loaded row{};
          row.x = x.load();
          if constexpr (kPerStep) row.a = a.load();
          return row;
        },
        [&](int rows) {
          x.prefetch(rows);
          if constexpr (kPerStep) a.prefetch(rows);
        },
        [&](const Loaded& row) {
          float values[N];
          unpack(row.x, values);
          if constexpr (kPerStep) unpack(row.a, coefficients.a);
          advance<kComplex, false>(coefficients.a, values, state);
          h.store(state);
        });
  });
  if (segment.is_last() && p.final_state) thread.store_state(p.final_state, segment.sequence, p.width, state);
}

// Launches a kernel with shared memory for the segments of a block and for `floats` floats.
inline cudaError_t launch_scan(void (*kernel)(ScanPlan), const ScanPlan& p, int64_t floats, cudaStream_t stream) {
  const size_t shared = std::max(sizeof(Segment) * p.runs, sizeof(float) * floats);
  return launch(kernel, p.row_blocks * p.columns, kScanThreads, shared, stream, p);
}

template <typename E, bool kComplex>
cudaError_t ScanKernels<E, kComplex>::sum_segments(const ScanPlan& p, bool reverse, cudaStream_t stream) {
  auto kernel = p.per_step ? reverse ? scan_sum_segments_kernel<E, kComplex, true, true>
                                     : scan_sum_segments_kernel<E, kComplex, true, false>
                : reverse  ? scan_sum_segments_kernel<E, kComplex, false, true>
                           : scan_sum_segments_kernel<E, kComplex, false, false>;
  return launch_scan(kernel, p, 0, stream);
}

template <typename E, bool kComplex>
cudaError_t ScanKernels<E, kComplex>::forward(const ScanPlan& p, cudaStream_t stream) {
  auto kernel = p.per_step ? scan_forward_kernel<E, kComplex, true> : scan_forward_kernel<E, kComplex, false>;
  return launch_scan(kernel, p, 0, stream);
}

}  // namespace recgrela::cuda
