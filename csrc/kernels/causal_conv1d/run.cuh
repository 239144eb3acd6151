// Run of rows that a thread processes, and the weights of its channels.
#pragma once

#include "kernels/causal_conv1d/plan.cuh"
#include "kernels/common/activations.cuh"
#include "kernels/common/row_batches.cuh"

namespace recgrela::cuda {

// One group of channels of one run.
struct Run {
  int64_t row_block;
  int64_t first_row;  // of the block
  int number;         // of the run in the block
  int64_t begin;      // first row of the run
  int rows;           // 0 for a thread without a run
  int64_t channel;    // first channel of the group
  int valid;          // channels of the group that exist

  __device__ explicit Run(const ConvPlan& p) {
    row_block = blockIdx.x / static_cast<unsigned>(p.columns);
    number = static_cast<int>(threadIdx.x) / p.block_groups;
    const int group =
        static_cast<int>(blockIdx.x % p.columns) * p.block_groups + static_cast<int>(threadIdx.x) % p.block_groups;
    first_row = row_block * p.runs * p.run_rows;
    begin = first_row + number * p.run_rows;
    const int64_t left = p.sequences.num_rows - begin;
    rows = left < p.run_rows ? static_cast<int>(left) : p.run_rows;
    channel = int64_t{group} * kConvGroup;
    valid = p.channels - channel < kConvGroup ? static_cast<int>(p.channels - channel) : kConvGroup;
    if (number >= p.runs || group >= p.groups || rows < 0) rows = 0;
  }

  template <typename T, bool kWhole>
  __device__ MovingRow<T, kConvGroup, false, kWhole> rows_from(const RowMatrix& matrix, int row) const {
    return {matrix, begin + row, channel, valid};
  }
};

// bfloat16 can do with an approximate sigmoid, from h = x / 2: sigmoid(x) = (1 + tanh(h)) / 2. The weights and the bias
// are then halved, which is exact.
template <typename E>
constexpr bool kHalveForSiLU = std::is_same_v<E, bf16>;

// Weights and bias of a group of channels, times `scale`.
template <typename E, int K>
struct ConvWeights {
  static constexpr int N = kConvGroup;
  float weight[K][N], bias[N], scale;

  __device__ ConvWeights(const CausalConv1dParams& p, const Run& run) : scale(kHalveForSiLU<E> && p.silu ? 0.5f : 1.f) {
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const bool valid = i < run.valid && run.rows > 0;
#pragma unroll
      for (int k = 0; k < K; ++k) weight[k][i] = valid ? scale * p.weight[(run.channel + i) * K + k] : 0.f;
      bias[i] = valid && p.bias ? scale * p.bias[run.channel + i] : 0.f;
    }
  }

  // Convolution at row `last` of rows, times `scale`.
  template <int M>
  __device__ void apply(const float (&rows)[M][N], int last, float (&out)[N]) const {
#pragma unroll
    for (int i = 0; i < N; ++i) {
      out[i] = bias[i];
#pragma unroll
      for (int k = 0; k < K; ++k) out[i] += weight[k][i] * rows[last - (K - 1) + k][i];
    }
  }
};

// SiLU of x / scale.
template <typename E>
__device__ float scaled_silu(float x) {
  if constexpr (kHalveForSiLU<E>) return x + x * fast_tanh(x);
  return x * sigmoid(x);
}

// Derivative of SiLU at x / scale, divided by scale.
template <typename E>
__device__ float scaled_silu_grad(float x) {
  if constexpr (kHalveForSiLU<E>) {
    const float t = fast_tanh(x), u = x - x * t, s = 1.f + t;
    return s + s * u;
  }
  const float s = sigmoid(x);
  return silu_grad(s, x * s);
}

// Row k of a history of sequence b; zeros if there is none or not `wanted`.
template <typename E, int K, bool kWhole>
__device__ void load_history_row(const void* history, const ConvPlan& p, const Run& run, int64_t b, int k, bool wanted,
                                 float (&row)[kConvGroup]) {
  wanted = wanted && history;
  const E* const from = static_cast<const E*>(history) + (b * (K - 1) + k) * p.channels + run.channel;
  if constexpr (kWhole) {
    Packed<E, kConvGroup> packed{};
    if (wanted) packed = *reinterpret_cast<const Packed<E, kConvGroup>*>(from);
    unpack(packed, row);
  } else {
    load_each(from, wanted ? run.valid : 0, row);
  }
}

// Replaces the K - 1 rows before rows[last], as far as they are in the array, by the initial history of sequence b.
template <typename E, int K, bool kWhole, int M>
__device__ void load_history(const ConvPlan& p, const Run& run, int64_t b, int last, float (&rows)[M][kConvGroup]) {
#pragma unroll
  for (int k = 0; k < K - 1; ++k)
    if (last - (K - 1) + k >= 0)
      load_history_row<E, K, kWhole>(p.initial_history, p, run, b, k, true, rows[last - (K - 1) + k]);
}

// The K - 1 rows before the current one.
template <typename E, int K>
struct RowsBefore {
  static constexpr int N = kConvGroup;
  float rows[K][N] = {};  // the last one is not used

  // Loads the rows before a run.
  __device__ void load(const ConvPlan& p, const Run& run) {
    if (run.begin == 0 || run.rows == 0) return;  // other runs follow at least K - 1 rows
    auto x = run.rows_from<const E, false>(p.x, 1 - K);
#pragma unroll
    for (int k = 0; k < K - 1; ++k) unpack(x.load(), rows[k]);
  }
  // Replaces them by the initial history of the run's sequence as far as they are in another one.
  template <typename B>
  __device__ void replace(const ConvPlan& p, const Run& run, const B& boundaries) {
#pragma unroll
    for (int k = 0; k < K - 1; ++k) {
      const int32_t start = boundaries.start(k - (K - 1));
      if (start >= 0) load_history<E, K, false>(p, run, start, k, rows);
    }
  }
  // Puts them before a batch of rows, and takes the last ones of the batch.
  template <int M>
  __device__ void put(float (&to)[K - 1 + M][N]) const {
#pragma unroll
    for (int k = 0; k < K - 1; ++k)
#pragma unroll
      for (int i = 0; i < N; ++i) to[k][i] = rows[k][i];
  }
  template <int M>
  __device__ void take(const float (&from)[K - 1 + M][N]) {
#pragma unroll
    for (int k = 0; k < K - 1; ++k)
#pragma unroll
      for (int i = 0; i < N; ++i) rows[k][i] = from[M + k][i];
  }
};

}  // namespace recgrela::cuda
