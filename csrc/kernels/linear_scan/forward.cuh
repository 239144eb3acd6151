// Forward of linear_scan, and the final states of segments that start from zero, in both directions.
#pragma once

#include <algorithm>

#include "kernels/linear_scan/thread.cuh"

namespace recgrela::cuda {

// Computes the final state of a segment that starts from a zero state, and the product of its coefficients. kReverse
// does so for the gradient k_i = conj(a_i) (d_h_i + k_{i+1}), from the last row to the first.
template <typename E, bool kComplex, bool kPerStep, bool kReverse>
__global__ void __launch_bounds__(kScanThreads, 2) scan_sum_segments_kernel(const ScanPlan p) {
  constexpr int N = kScanGroup<E>;
  const ScanThread<E> thread(p);
  if (!thread.valid || (kReverse ? thread.segment.is_first() : thread.segment.is_last())) return;
  const RowMatrix& rows = kReverse ? p.d_h : p.x;
  Coefficients<E, kPerStep> coefficients(p, thread);
  const float zero[N] = {};
  float state[N] = {}, product[N];
#pragma unroll
  for (int i = 0; i < N; ++i) product[i] = kComplex && i % 2 ? 0.f : 1.f;
  thread.template for_each_row<kReverse>(
      [&](int64_t row, bool wanted) {
        LoadedRow<E> loaded{};
        loaded.x = thread.template load<E>(rows, row, wanted);
        coefficients.load(p, thread, row, wanted, loaded);
        return loaded;
      },
      [&](int64_t, const LoadedRow<E>& loaded) {
        float x[N];
        unpack(loaded.x, x);
        coefficients.set(loaded);
        if constexpr (kReverse) {
#pragma unroll
          for (int i = 0; i < N; ++i) state[i] += x[i];
          advance<kComplex, true>(coefficients.a, zero, state);
        } else {
          advance<kComplex, false>(coefficients.a, x, state);
        }
        advance<kComplex, kReverse>(coefficients.a, zero, product);
      });
  thread.store_state(p.states, thread.segment.slot, p.width, state);
  thread.store_state(p.products, thread.segment.slot, p.width, product);
}

template <typename E, bool kComplex, bool kPerStep>
__global__ void __launch_bounds__(kScanThreads, 2) scan_forward_kernel(const ScanPlan p) {
  constexpr int N = kScanGroup<E>;
  check_sequences(p.sequences);
  const ScanThread<E> thread(p);
  if (!thread.valid) return;
  const Segment& segment = thread.segment;
  Coefficients<E, kPerStep> coefficients(p, thread);
  float state[N];
  if (segment.count > 1) {
    thread.load_state(p.states, segment.slot, p.width, state);
  } else {
    thread.load_state(p.initial_state, segment.sequence, p.width, state);
  }
  thread.template for_each_row<false>(
      [&](int64_t row, bool wanted) {
        LoadedRow<E> loaded{};
        loaded.x = thread.template load<E>(p.x, row, wanted);
        coefficients.load(p, thread, row, wanted, loaded);
        return loaded;
      },
      [&](int64_t row, const LoadedRow<E>& loaded) {
        float x[N];
        unpack(loaded.x, x);
        coefficients.set(loaded);
        advance<kComplex, false>(coefficients.a, x, state);
        thread.template store<E>(p.h, row, state);
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
