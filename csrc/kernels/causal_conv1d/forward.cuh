// Forward of causal_conv1d. A thread iterates over its run in batches of rows, with the K - 1 rows before in registers.
#pragma once

#include "kernels/causal_conv1d/boundaries.cuh"
#include "kernels/causal_conv1d/run.cuh"

namespace recgrela::cuda {

template <typename E, int K>
__global__ void __launch_bounds__(kConvThreads, kForwardBlocks) conv_forward_kernel(const ConvPlan p) {
  constexpr int N = kConvGroup, kStep = kForwardStep, kRows = kStep * kBatchSteps;
  const Run run(p);
  auto x = run.rows_from<const E, true>(p.x, 0);
  auto y = run.rows_from<E, true>(p.y, 0);
  auto load = [&] { return x.load(); };
  // The first rows arrive while the block looks for boundaries.
  RowBatches<kRows, Packed<E, N>> batches(p.whole ? run.rows : 0);
  batches.load_first(load);
  batches.load_second(load);
  RowsBefore<E, K> before;
  before.load(p, run);
  const ConvWeights<E, K> weights(p, run);
  check_sequences(p.sequences);
  Boundaries<K, kStep, 0> boundaries(p, run.first_row, false);
  if (run.rows == 0) return;
  boundaries.move_to(run.number);
  before.replace(p, run, boundaries);

  int row = 0;
  auto use = [&](auto count, const Packed<E, N>* loaded, auto& to) {
    constexpr int M = decltype(count)::value;
    float rows[K - 1 + M][N], out[M][N];
    before.template put<M>(rows);
#pragma unroll
    for (int k = 0; k < M; ++k) unpack(loaded[k], rows[K - 1 + k]);
    if (M == 1 || boundaries.flag(row)) {
#pragma unroll
      for (int k = 0; k < M; ++k) {
        const int32_t start = boundaries.start(row + k);
        if (start >= 0) load_history<E, K, (M > 1)>(p, run, start, K - 1 + k, rows);
        weights.apply(rows, K - 1 + k, out[k]);
      }
    } else {
#pragma unroll
      for (int k = 0; k < M; ++k) weights.apply(rows, K - 1 + k, out[k]);
    }
    if (p.silu) {
#pragma unroll
      for (int k = 0; k < M; ++k)
#pragma unroll
        for (int i = 0; i < N; ++i) out[k][i] = scaled_silu<E>(out[k][i]);
    }
#pragma unroll
    for (int k = 0; k < M; ++k) to.store(out[k]);
    before.template take<M>(rows);
    row += M;
  };
  batches.use_all(load, [&](const Packed<E, N>(&batch)[kRows]) {
#pragma unroll
    for (int k = 0; k < kRows; k += kStep) use(std::integral_constant<int, kStep>{}, batch + k, y);
  });
  auto x_each = run.rows_from<const E, false>(p.x, row);
  auto y_each = run.rows_from<E, false>(p.y, row);
#pragma unroll 1
  while (row < run.rows) {  // the rest of the last run, and groups that are not whole
    if (row + kPrefetchRows < run.rows) x_each.prefetch(kPrefetchRows);
    const Packed<E, N> loaded = x_each.load();
    use(std::integral_constant<int, 1>{}, &loaded, y_each);
  }
}

template <typename E>
cudaError_t ConvKernels<E>::forward(const ConvPlan& p, cudaStream_t stream) {
  return dispatch_kernel_size(p.kernel_size, [&](auto kernel_size) {
    constexpr int K = decltype(kernel_size)::value;
    return launch(conv_forward_kernel<E, K>, p.row_blocks * p.columns, kConvThreads,
                  Boundaries<K, kForwardStep, 0>::size(p, false), stream, p);
  });
}

}  // namespace recgrela::cuda
