// Run of rows that a thread processes, the weights of its channels, and the boundaries of sequences in its block.
#pragma once

#include "kernels/causal_conv1d/plan.cuh"
#include "kernels/common/activations.cuh"
#include "kernels/common/sequences.cuh"

namespace recgrela::cuda {

// N channels of one run, with a kernel of K rows.
template <typename E, int N, int K>
struct Run {
  int64_t row_block;
  int64_t first_boundary;  // first row whose boundaries are found: K - 1 rows before the block
  int64_t begin;           // first row of the run
  int rows;                // 0 for a thread without a run
  int low, high;           // rows begin + low .. begin + high exist: the run and up to K - 1 rows on each side
  int64_t channel;         // first channel of the group
  int valid;               // channels of the group that exist
  bool whole;              // all N channels exist and are aligned in every row

  __device__ explicit Run(const ConvPlan& p) {
    row_block = blockIdx.x / p.columns;
    const int run = static_cast<int>(threadIdx.x) / p.block_groups;
    const int group =
        static_cast<int>(blockIdx.x % p.columns) * p.block_groups + static_cast<int>(threadIdx.x) % p.block_groups;
    begin = (row_block * p.runs + run) * p.run_rows;
    first_boundary = row_block * p.runs * p.run_rows - (K - 1);
    const int64_t left = p.sequences.num_rows - begin;
    rows = left < p.run_rows ? static_cast<int>(left) : p.run_rows;
    high = left < p.run_rows + K - 1 ? static_cast<int>(left) : p.run_rows + K - 1;
    low = begin == 0 ? 0 : -(K - 1);  // a run has at least K - 1 rows
    channel = int64_t{group} * N;
    valid = p.channels - channel < N ? static_cast<int>(p.channels - channel) : N;
    whole = p.aligned && valid == N;
    if (run >= p.runs || group >= p.groups || rows < 0) rows = 0;
  }

  // Loads row `row` of the run if it is in [first, last), else zeros. `rows` points to the group in the run's first
  // row.
  __device__ Packed<E, N> load(const E* rows, int64_t stride, int row, int first, int last) const {
    if (row < first || row >= last) return {};
    if (whole) return *reinterpret_cast<const Packed<E, N>*>(rows + row * stride);
    float values[N];
    load_each(rows + row * stride, valid, values);
    return pack<E>(values);
  }
};

// Weights and bias of a group of channels.
template <int N, int K>
struct ConvWeights {
  float weight[K][N], bias[N];

  __device__ ConvWeights(const CausalConv1dParams& p, int64_t channel, int valid) {
#pragma unroll
    for (int i = 0; i < N; ++i) {
#pragma unroll
      for (int k = 0; k < K; ++k) weight[k][i] = i < valid ? p.weight[(channel + i) * K + k] : 0.f;
      bias[i] = i < valid && p.bias ? p.bias[channel + i] : 0.f;
    }
  }

  // Convolution at the last of K rows.
  __device__ void apply(const float (&rows)[K][N], float (&out)[N]) const {
#pragma unroll
    for (int i = 0; i < N; ++i) {
      out[i] = bias[i];
#pragma unroll
      for (int k = 0; k < K; ++k) out[i] += weight[k][i] * rows[k][i];
    }
  }
};

// Replaces rows[0 .. K - 2] by the initial history of sequence b.
template <typename E, int N, int K>
__device__ void load_history(const CausalConv1dParams& p, int64_t b, int64_t channel, int valid, float (&rows)[K][N]) {
#pragma unroll
  for (int k = 0; k < K - 1; ++k)
    load_each(static_cast<const E*>(p.initial_history) + (b * (K - 1) + k) * p.channels + channel,
              p.initial_history ? valid : 0, rows[k]);
}

template <int N, int K>
__device__ void shift_up(float (&rows)[K][N]) {
#pragma unroll
  for (int k = 0; k + 1 < K; ++k)
#pragma unroll
    for (int i = 0; i < N; ++i) rows[k][i] = rows[k + 1][i];
}

// Finds the boundaries at rows base .. base + count - 1: starts[i] is the sequence that begins at row base + i, ends[i]
// the sequence that ends just before that row; both are -1 if there is none. All threads of a block call it. `ends` may
// be null; `first_offset` is scratch in shared memory.
inline __device__ void find_boundaries(const Sequences& s, int64_t base, int count, int32_t* starts, int32_t* ends,
                                       int64_t* first_offset) {
  for (int i = threadIdx.x; i < count; i += kConvThreads) {
    starts[i] = -1;
    if (ends) ends[i] = -1;
  }
  if (threadIdx.x < 32) {
    const int64_t first = first_offset_from(s, base);
    if (threadIdx.x == 0) *first_offset = first;
  }
  __syncthreads();
  for (int64_t i = *first_offset + threadIdx.x; i <= s.num_sequences; i += kConvThreads) {
    const int64_t row = sequence_offset(s, i);
    if (row < base || row >= base + count) break;
    if (i < s.num_sequences && sequence_offset(s, i + 1) > row) starts[row - base] = static_cast<int32_t>(i);
    if (ends && i > 0 && sequence_offset(s, i - 1) < row) ends[row - base] = static_cast<int32_t>(i - 1);
  }
  __syncthreads();
}

}  // namespace recgrela::cuda
