// The parts of linear_cross_entropy that take one read of rows: the table in half precision and sums of its columns,
// the loss and d_hidden from the splits of the first pass, and sums of partial results.
#pragma once

#include "kernels/common/activations.cuh"
#include "kernels/linear_cross_entropy/plan.cuh"

namespace recgrela::cuda {

// log2 of the sum of exp2(scores) of a row, whose splits have maxima and sums relative to them.
inline __device__ float log_sum(const EntropyPlan& p, int64_t row) {
  float highest = -INFINITY, sum = 0.f;
#pragma unroll 4
  for (int64_t i = 0; i < p.scores.splits; ++i) {
    const float2 part = p.row_partials[i * p.num_rows + row];
    const float raised = max(highest, part.x);
    if (part.x != -INFINITY) sum = sum * fast_exp2(highest - raised) + part.y * fast_exp2(part.x - raised);
    highest = raised;
  }
  return highest + log2f(sum);
}

// Sum over a warp, in every lane.
inline __device__ float warp_sum(float x) {
#pragma unroll
  for (int lanes = 1; lanes < 32; lanes *= 2) x += __shfl_xor_sync(0xffffffffu, x, lanes);
  return x;
}

// Loss and d_hidden of kFinishRows rows, a warp a row; a lane has pairs of columns.
//   d_hidden = (sum_s out_s 2^(max_s - log_sum) - (1 - a) w[target] - a mean(w)) / T
//   loss     = log_sum - (1 - a) s[target] - a mean(s), with mean(s) = hidden mean(w) + mean(bias)
template <typename E, int kWidth>
__device__ void finish_rows(const EntropyPlan& p, int64_t block) {
  constexpr int kPairs = kWidth < 64 ? 1 : kWidth / 64;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const float smoothing = p.label_smoothing, kept = 1.f - smoothing;
  float* const mean = reinterpret_cast<float*>(dynamic_shared());  // [D + 1]: of weight and bias
  double* const losses = reinterpret_cast<double*>(mean + kWidth + 2);
  for (int c = threadIdx.x; c <= p.dim; c += kEntropyThreads) {
    float sum = 0.f;
    if (p.column_sums)
      for (int64_t i = 0; i < p.prepare_blocks; ++i) sum += p.column_sums[i * (p.dim + 1) + c];
    mean[c] = sum / p.num_items;
  }
  __syncthreads();

  double loss = 0;
  for (int i = warp; i < kFinishRows; i += kEntropyWarps) {
    const int64_t row = block * kFinishRows + i;
    if (row >= p.num_rows) break;
    const int64_t target = p.target[row];
    RECGRELA_DEVICE_CHECK(target >= 0 && target < p.num_items, "linear_cross_entropy: a target is out of bounds");
    const float normalizer = log_sum(p, row);
    const E* const hidden = static_cast<const E*>(p.hidden.data) + row * p.hidden.stride;
    const E* const weight = static_cast<const E*>(p.table.data) + target * p.table.stride;
    float score = 0.f;
    float2 wanted[kPairs];  // expected item under the target distribution
#pragma unroll
    for (int k = 0; k < kPairs; ++k) {
      const int c = 2 * lane + 64 * k;
      if (c >= p.dim) continue;
      const float2 h = load2(hidden + c), w = load2(weight + c);
      wanted[k] = make_float2(kept * w.x + smoothing * mean[c], kept * w.y + smoothing * mean[c + 1]);
      score += h.x * wanted[k].x + h.y * wanted[k].y;
    }
    score = warp_sum(score) + (p.bias ? kept * p.bias[target] + smoothing * mean[p.dim] : 0.f);
    loss += double{kLn2} * normalizer - score;
    if (!p.d_hidden) continue;
#pragma unroll
    for (int k = 0; k < kPairs; ++k) {
      const int c = 2 * lane + 64 * k;
      if (c >= p.dim) continue;
      float2 d = make_float2(-wanted[k].x, -wanted[k].y);
      for (int64_t s = 0; s < p.scores.splits; ++s) {
        const float highest = p.row_partials[s * p.num_rows + row].x;
        const float factor = fast_exp2(highest - normalizer);
        const float2 part = load2(p.hidden_partials + (s * p.num_rows + row) * p.dim + c);
        d.x += factor * part.x, d.y += factor * part.y;
      }
      const float scale = 1.f / p.num_rows;
      store2(static_cast<E*>(p.d_hidden) + row * p.dim + c, d.x * scale, d.y * scale);
    }
  }
  if (lane == 0) losses[warp] = loss;
  __syncthreads();
  if (threadIdx.x == 0) p.loss_partials[block] = losses[0] + losses[1] + losses[2] + losses[3];
}

template <typename E, int kWidth>
__global__ void __launch_bounds__(kEntropyThreads) finish_rows_kernel(const EntropyPlan p) {
  finish_rows<E, kWidth>(p, blockIdx.x);
}

// Shared memory of finish_rows.
constexpr size_t finish_bytes(int width) { return (width + 2) * sizeof(float) + kEntropyWarps * sizeof(double); }

// Rounds a share of the table to E, and adds its columns if `column_sums` is wanted: a thread has four columns of every
// n-th item, and one thread per column adds their sums in order.
template <typename E>
__global__ void __launch_bounds__(kPrepareThreads) prepare_kernel(const EntropyPlan p) {
  const int vectors = p.dim / 4, step = kPrepareThreads / vectors;
  const int first = threadIdx.x / vectors, c = threadIdx.x % vectors * 4;
  const int64_t share = (p.num_items + p.prepare_blocks - 1) / p.prepare_blocks;
  const int64_t begin = blockIdx.x * share, end = begin + share < p.num_items ? begin + share : p.num_items;
  float4 sum = make_float4(0.f, 0.f, 0.f, 0.f);
  float bias = 0.f;
#pragma unroll 4
  for (int64_t item = begin + first; item < end && first < step; item += step) {
    const float4 w =
        *reinterpret_cast<const float4*>(static_cast<const float*>(p.weight.data) + item * p.weight.stride + c);
    sum.x += w.x, sum.y += w.y, sum.z += w.z, sum.w += w.w;
    if (c == 0 && p.column_sums && p.bias) bias += p.bias[item];
    if constexpr (sizeof(E) == 2)
      *reinterpret_cast<uint2*>(static_cast<E*>(p.half_table) + item * p.dim + c) =
          make_uint2(pack2<E>(w.x, w.y), pack2<E>(w.z, w.w));
  }
  if (!p.column_sums) return;
  float* const sums = reinterpret_cast<float*>(dynamic_shared());  // [step, D + 1]
  if (first < step) {
    float* const own = sums + first * (p.dim + 1) + c;
    own[0] = sum.x, own[1] = sum.y, own[2] = sum.z, own[3] = sum.w;
    if (c == 0) sums[first * (p.dim + 1) + p.dim] = bias;
  }
  __syncthreads();
  for (int column = threadIdx.x; column <= p.dim; column += kPrepareThreads) {
    float total = 0.f;
    for (int i = 0; i < step; ++i) total += sums[i * (p.dim + 1) + column];
    p.column_sums[blockIdx.x * int64_t{p.dim + 1} + column] = total;
  }
}

}  // namespace recgrela::cuda
