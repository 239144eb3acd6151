// The parts of linear_cross_entropy that take one read of rows: the operands of products and sums of the table's
// columns before the first pass; the loss and d_hidden from its splits after it.
#pragma once

#include "kernels/common/activations.cuh"
#include "kernels/common/packed.cuh"
#include "kernels/common/split.cuh"
#include "kernels/linear_cross_entropy/plan.cuh"

namespace recgrela::cuda {

// log2 of the sum of exp2(scores) of a row, whose splits have maxima and sums relative to them.
inline __device__ float log_sum(const EntropyPlan& p, int64_t row) {
  float highest = -INFINITY, sum = 0.f;
#pragma unroll 4
  for (int64_t i = 0; i < p.scores.splits; ++i) {
    const float2 part = p.row_partials[i * p.num_rows + row];
    const float raised = max(highest, part.x);
    if (part.y != 0.f) sum = sum * fast_exp2(highest - raised) + part.y * fast_exp2(part.x - raised);
    highest = raised;
  }
  return highest + log2f(sum);
}

constexpr int kFinishColumns = 8;  // of a lane

// Loads kFinishColumns elements that are aligned to 16 bytes.
template <typename E>
__device__ void load_columns(const E* from, float (&out)[kFinishColumns]) {
  constexpr int kVector = 16 / sizeof(E);
#pragma unroll
  for (int v = 0; v < kFinishColumns; v += kVector) {
    float x[kVector];
    unpack(*reinterpret_cast<const Packed<E, kVector>*>(from + v), x);
#pragma unroll
    for (int i = 0; i < kVector; ++i) out[v + i] = x[i];
  }
}
template <typename E>
__device__ void store_columns(E* to, const float (&values)[kFinishColumns]) {
  constexpr int kVector = 16 / sizeof(E);
#pragma unroll
  for (int v = 0; v < kFinishColumns; v += kVector) {
    float x[kVector];
#pragma unroll
    for (int i = 0; i < kVector; ++i) x[i] = values[v + i];
    store_row(to + v, kVector, true, x);
  }
}

// Loss and d_hidden of kFinishRows rows. A few lanes share a row.
//   d_hidden = (sum_s out_s 2^(max_s - log_sum) - wanted) / T, with wanted = (1 - a) w[target] + a mean(w)
//   loss     = log_sum - (hidden wanted + (1 - a) bias[target] + a mean(bias))
template <typename E, int kWidth>
__device__ void finish_rows(const EntropyPlan& p, int64_t block) {
  constexpr int kLanes = kWidth / kFinishColumns, kTeams = kEntropyThreads / kLanes;
  const int lane = threadIdx.x % kLanes, team = threadIdx.x / kLanes, c = kFinishColumns * lane;
  const float smoothing = p.label_smoothing, kept = 1.f - smoothing, scale = 1.f / p.num_rows;
  float* const mean = reinterpret_cast<float*>(dynamic_shared());  // [D + 1]: of weight and bias
  double* const losses = reinterpret_cast<double*>(mean + kWidth + 2);
  for (int column = threadIdx.x; column <= p.dim; column += kEntropyThreads) {
    float sum = 0.f;
    if (p.column_sums)
      for (int64_t i = 0; i < p.prepare_blocks; ++i) sum += p.column_sums[i * (p.dim + 1) + column];
    mean[column] = sum / p.num_items;
  }
  __syncthreads();

  double loss = 0;
  for (int i = team; i < kFinishRows; i += kTeams) {
    const int64_t row = block * kFinishRows + i;
    const bool exists = row < p.num_rows;
    const int64_t target = exists ? p.target[row] : 0;
    RECGRELA_DEVICE_CHECK(target >= 0 && target < p.num_items, "linear_cross_entropy: a target is out of bounds");
    float hidden[kFinishColumns] = {}, wanted[kFinishColumns] = {}, score = 0.f;
    if (exists && c < p.dim) {
      load_columns(static_cast<const E*>(p.rows.data) + row * p.rows.stride + c, hidden);
      load_columns(static_cast<const E*>(p.table.data) + target * p.table.stride + c, wanted);
#pragma unroll
      for (int k = 0; k < kFinishColumns; ++k) {
        wanted[k] = kept * wanted[k] + smoothing * mean[c + k];
        score += hidden[k] * wanted[k];
      }
    }
#pragma unroll
    for (int lanes = 1; lanes < kLanes; lanes *= 2) score += __shfl_xor_sync(0xffffffffu, score, lanes);
    if (!exists) continue;  // its lanes have taken part in the sums of others
    const float normalizer = log_sum(p, row);
    if (p.bias) score += kept * p.bias[target] + smoothing * mean[p.dim];
    if (lane == 0) loss += double{kLn2} * normalizer - score;
    if (!p.d_hidden || c >= p.dim) continue;
    float d[kFinishColumns];
#pragma unroll
    for (int k = 0; k < kFinishColumns; ++k) d[k] = -wanted[k];
    for (int64_t s = 0; s < p.scores.splits; ++s) {
      const float factor = fast_exp2(p.row_partials[s * p.num_rows + row].x - normalizer);
      float part[kFinishColumns];
      load_columns(p.hidden_partials + (s * p.num_rows + row) * p.dim + c, part);
#pragma unroll
      for (int k = 0; k < kFinishColumns; ++k) d[k] += factor * part[k];
    }
#pragma unroll
    for (float& x : d) x *= scale;
    if (p.hidden_gradient() == DType::kFloat32)
      store_columns(static_cast<float*>(p.d_hidden) + row * p.dim + c, d);
    else
      store_columns(static_cast<E*>(p.d_hidden) + row * p.dim + c, d);
  }
  if (lane == 0) losses[team] = loss;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int i = 1; i < kTeams; ++i) loss += losses[i];
  p.loss_partials[block] = loss;
}

template <typename E, int kWidth>
__global__ void __launch_bounds__(kEntropyThreads) finish_rows_kernel(const EntropyPlan p) {
  finish_rows<E, kWidth>(p, blockIdx.x);
}

// Shared memory of finish_rows.
constexpr size_t finish_bytes(int width) {
  return (width + 2) * sizeof(float) + kEntropyThreads * kFinishColumns / width * sizeof(double);
}

// Stores the parts of four numbers, which are the number in half precision or the bf16 numbers that add up to it.
template <typename E>
__device__ void store_parts(void* parts, int64_t index, int64_t part_size, const float4& x) {
  const Split2<E> low(x.x, x.y), high(x.z, x.w);
#pragma unroll
  for (int i = 0; i < kParts<E>; ++i)
    *reinterpret_cast<uint2*>(static_cast<Part<E>*>(parts) + index + i * part_size) =
        make_uint2(low.part[i], high.part[i]);
}

// Converts rows of float32 hidden.
template <typename E>
__device__ void convert_hidden(const EntropyPlan& p, int64_t block) {
  const int vectors = p.dim / 4;
  for (int i = threadIdx.x; i < kConvertedRows * vectors; i += kPrepareThreads) {
    const int64_t row = block * kConvertedRows + i / vectors;
    if (row >= p.num_rows) break;
    const int c = i % vectors * 4;
    const float4 x =
        *reinterpret_cast<const float4*>(static_cast<const float*>(p.hidden.data) + row * p.hidden.stride + c);
    store_parts<E>(p.hidden_parts, row * p.dim + c, p.num_rows * p.dim, x);
  }
}

// Converts a share of the table to operands, and adds its columns if `column_sums` is wanted: a thread has four columns
// of every n-th item, and one thread per column adds their sums in order. Further blocks convert hidden.
template <typename E>
__global__ void __launch_bounds__(kPrepareThreads) prepare_kernel(const EntropyPlan p) {
  if (blockIdx.x >= p.prepare_blocks) {
    convert_hidden<E>(p, blockIdx.x - p.prepare_blocks);
    return;
  }
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
    if (p.item_parts) store_parts<E>(p.item_parts, item * p.dim + c, p.num_items * p.dim, w);
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
