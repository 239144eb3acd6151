// Forward of causal_conv1d. A thread iterates over its run in batches of rows, with the K - 1 rows before in registers.
#pragma once

#include "kernels/causal_conv1d/boundaries.cuh"
#include "kernels/causal_conv1d/run.cuh"

namespace recgrela::cuda {

template <typename E, int K, bool kWhole>
__global__ void __launch_bounds__(kConvThreads, kForwardBlocks) conv_forward_kernel(const ConvPlan p) {
  constexpr int N = kConvGroup, kRows = kForwardRows<kWhole>;
  const Run run(p);
  auto x = run.rows_from<const E, kWhole>(p.x, 0);
  auto y = run.rows_from<E, kWhole>(p.y, 0);
  auto load = [&] { return x.load(); };
  // The first rows arrive while the block looks for boundaries.
  RowBatches<kRows, Packed<E, N>> batches(run.rows);
  batches.load_first(load);
  batches.load_second(load);
  RowsBefore<E, K> before;
  before.template load<kWhole>(p, run);
  const ConvWeights<E, K> weights(p, run);
  check_sequences(p.sequences);
  Boundaries<K, kRows, 0> boundaries(p, run.first_row, false);
  if (run.rows == 0) return;
  boundaries.move_to(run.number);
  before.replace(p, run, boundaries);

  int row = 0;
  auto use = [&](const auto& batch) {
    constexpr int M = std::extent_v<std::remove_reference_t<decltype(batch)>>;
    float rows[K - 1 + M][N], out[M][N];
    before.template put<M>(rows);
#pragma unroll
    for (int k = 0; k < M; ++k) unpack(batch[k], rows[K - 1 + k]);
    if (M == 1 || boundaries.flag(row)) {
#pragma unroll
      for (int k = 0; k < M; ++k) {
        const int32_t start = boundaries.start(row + k);
        if (start >= 0) load_history<E, K>(p, run, start, K - 1 + k, rows);
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
    for (int k = 0; k < M; ++k) y.store(out[k]);
    before.template take<M>(rows);
    row += M;
  };
  batches.use_all(load, use);
#pragma unroll 1
  while (row < run.rows) {  // the rest of the last run
    const Packed<E, N> last[1] = {x.load()};
    use(last);
  }
}

template <typename E>
cudaError_t ConvKernels<E>::forward(const ConvPlan& p, cudaStream_t stream) {
  return dispatch_kernel_size(p.kernel_size, [&](auto kernel_size) {
    constexpr int K = decltype(kernel_size)::value;
    auto launch_kernel = [&](auto whole) {
      constexpr bool kWhole = decltype(whole)::value;
      const size_t shared = Boundaries<K, kForwardRows<kWhole>, 0>::size(p, false);
      return launch(conv_forward_kernel<E, K, kWhole>, p.row_blocks * p.columns, kConvThreads, shared, stream, p);
    };
    return p.whole ? launch_kernel(std::true_type{}) : launch_kernel(std::false_type{});
  });
}

}  // namespace recgrela::cuda
