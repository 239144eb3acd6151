// Forward of linear. A block holds the weights of its outputs in shared memory, as operands that need no conversion.
// A warp takes 16 rows at a time, straight from memory to registers: the inner dimension of the products is permuted so
// that each lane's elements are side by side in a row of x, and the outputs so that they are in a row of y.
#pragma once

#include <algorithm>

#include "kernels/common/stage.cuh"
#include "kernels/linear/plan.cuh"

namespace recgrela::cuda {

// 16 rows of kTiles tiles of x: each lane holds rows l / 4 and l / 4 + 8, kWidth elements of each side by side.
template <typename E, int kTiles>
struct XRows {
  static constexpr int kWidth = 16 / sizeof(E);
  static constexpr int kVectors = kTiles * 4 / kWidth;
  uint4 vectors[2][kVectors];

  // The first of the lane's four columns in tile t.
  static __device__ int column(int t) {
    return t * 4 / kWidth * 4 * kWidth + static_cast<int>(threadIdx.x) % 4 * kWidth + t * 4 % kWidth;
  }

  __device__ void load(const LinearPlan& p, int tile, int first_column) {
    const int lane = threadIdx.x % 32, row = tile * 16 + lane / 4, column = first_column + lane % 4 * kWidth;
    const E* const x = p.x.row<const E>(row) + column;
#pragma unroll
    for (int h = 0; h < 2; ++h)
#pragma unroll
      for (int i = 0; i < kVectors; ++i) {
        const bool valid = row + 8 * h < p.num_rows && column + i * 4 * kWidth < p.width;
        vectors[h][i] = valid ? *reinterpret_cast<const uint4*>(x + 8 * h * p.x.stride + i * 4 * kWidth) : uint4{};
      }
  }

  __device__ Operand<E> operand(int t) const {
    Operand<E> m;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const uint4& v = vectors[h][t * 4 / kWidth];
      if constexpr (sizeof(E) == 4) {
        set_element(m, 0, 2 * h, bits_float(v.x)), set_element(m, 0, 2 * h + 1, bits_float(v.y));
        set_element(m, 1, 2 * h, bits_float(v.z)), set_element(m, 1, 2 * h + 1, bits_float(v.w));
      } else {
        m.r[h] = t % 2 ? v.z : v.x;
        m.r[2 + h] = t % 2 ? v.w : v.y;
      }
    }
    return m;
  }
};

// A group of tiles of 16 outputs of one layer.
struct OutputGroup {
  bool second;  // layer
  int column;   // first output
  int outputs;  // 16 to 16 max_tiles

  __device__ OutputGroup(const LinearPlan& p, int group, int max_tiles) {
    const int width = max_tiles * 16, groups = (p.first_outputs + width - 1) / width;
    second = group >= groups;
    column = (second ? group - groups : group) * width;
    const int left = (second ? p.outputs - p.first_outputs : p.first_outputs) - column;
    outputs = left < width ? left : width;
  }
};

// Stages the weights and biases of the groups first .. first + count - 1, with zeros in the place of missing columns.
template <typename E, int kTiles, int kGroup>
__device__ void stage_groups(const LinearPlan& p, int first, int count, uint4* weights, float* biases) {
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = threadIdx.x % 32, steps = p.chunks * kTiles;
  for (int i = warp; i < count * kGroup * steps; i += kForwardWarps<E>) {
    const int tile = i / steps, step = i % steps;
    const OutputGroup group(p, first + tile / kGroup, kGroup);
    const int column = step / kTiles * kTiles * 16 + XRows<E, kTiles>::column(step % kTiles);
    const float* const weight = p.weight_of(group.second);
    Acc w;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int output = output_column<E, kGroup>(tile % kGroup, lane / 4 + 8 * h);
      const bool valid = output < group.outputs && column < p.width;
      const float4 v =
          valid ? *reinterpret_cast<const float4*>(weight + (group.column + output) * p.width + column) : float4{};
      w.x[0][2 * h] = v.x, w.x[0][2 * h + 1] = v.y, w.x[1][2 * h] = v.z, w.x[1][2 * h + 1] = v.w;
    }
    store_operand(weights + i * kOperandVectors<E>, to_operand<E>(w));
  }
  for (int i = threadIdx.x; i < count * kGroup * 16; i += kForwardThreads<E>) {
    const OutputGroup group(p, first + i / (kGroup * 16), kGroup);
    const float* const bias = p.bias_of(group.second);
    const int output = i % (kGroup * 16);
    biases[i] = bias && output < group.outputs ? bias[group.column + output] : 0.f;
  }
}

// A warp holds kTiles tiles of x and computes kGroup tiles of outputs at a time. kWhole: the tiles are all of x's
// columns, so that rows are loaded once; otherwise they are loaded again for each group. kAhead: the next tiles are
// loaded before the products.
template <typename E, int kTiles, int kGroup, bool kWhole, bool kAhead>
__global__ void __launch_bounds__(kForwardThreads<E>, 2) linear_forward_kernel(const LinearPlan p) {
  const int first = static_cast<int>(blockIdx.x) % p.slices * p.slice_groups;
  const int count = p.groups - first < p.slice_groups ? p.groups - first : p.slice_groups;
  const int steps = kWhole ? kTiles : p.chunks * kTiles;
  uint4* const weights = reinterpret_cast<uint4*>(dynamic_shared());
  float* const biases = reinterpret_cast<float*>(weights + p.slice_groups * kGroup * steps * kOperandVectors<E>);
  stage_groups<E, kTiles, kGroup>(p, first, count, weights, biases);
  __syncthreads();

  const int lane = threadIdx.x % 32;
  const int stride = p.row_blocks * kForwardWarps<E>;
  int tile = static_cast<int>(blockIdx.x / p.slices * kForwardWarps<E> + threadIdx.x / 32);
  XRows<E, kTiles> x;
  Operand<E> rows[kTiles];
  if constexpr (kAhead) x.load(p, tile, 0);
  for (; tile < p.row_tiles; tile += stride) {
    if constexpr (kWhole) {
      if constexpr (!kAhead) x.load(p, tile, 0);
#pragma unroll
      for (int t = 0; t < kTiles; ++t) rows[t] = x.operand(t);
      if constexpr (kAhead) x.load(p, tile + stride, 0);
    }
#pragma unroll 1
    for (int g = 0; g < count; ++g) {
      Acc y[kGroup];
#pragma unroll
      for (int n = 0; n < kGroup; ++n)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const float b = biases[g * kGroup * 16 + output_column<E, kGroup>(n, lane / 4 + 8 * h)];
          y[n].x[0][2 * h] = y[n].x[0][2 * h + 1] = y[n].x[1][2 * h] = y[n].x[1][2 * h + 1] = b;
        }
#pragma unroll 1
      for (int chunk = 0; chunk < (kWhole ? 1 : p.chunks); ++chunk) {
        const uint4* const w = weights + (g * kGroup * steps + chunk * kTiles) * kOperandVectors<E>;
#pragma unroll
        for (int t = 0; t < kTiles; ++t) {
          if constexpr (!kWhole) rows[t] = x.operand(t);
          if constexpr (!kWhole && kAhead) {
            const bool last = chunk + 1 == p.chunks;
            if (t + 1 == kTiles)
              x.load(p, last && g + 1 == count ? tile + stride : tile, last ? 0 : (chunk + 1) * kTiles * 16);
          }
#pragma unroll
          for (int n = 0; n < kGroup; ++n) {
            mma(y[n], load_operand<E>(w + (n * steps + t) * kOperandVectors<E>), rows[t]);
            limit_overlap<E>();
          }
        }
      }
      const OutputGroup group(p, first + g, kGroup);
      const PlanRows to = p.rows_of(group.second);
      store_outputs(to.row<E>(tile * 16) + group.column, to.stride, p.num_rows - tile * 16, group.outputs, y);
    }
  }
}

template <typename E, int kTiles, int kGroup, bool kWhole, bool kAhead>
cudaError_t launch_forward(LinearPlan& p, cudaStream_t stream) {
  // With more weights in shared memory, a multiprocessor would hold too few blocks. Each slice reads x again.
  constexpr int64_t kMaxWeightBytes = 96 * 1024;
  constexpr int64_t kTileBytes = kTiles * kGroup * int64_t{sizeof(Operand<E>)} * 32;
  p.chunks = static_cast<int>(ceil_div(p.width, kTiles * 16));
  p.groups =
      static_cast<int>(ceil_div(p.first_outputs, kGroup * 16) + ceil_div(p.outputs - p.first_outputs, kGroup * 16));
  const int64_t max_groups = std::max<int64_t>(1, kMaxWeightBytes / (kTileBytes * p.chunks));
  p.slice_groups = static_cast<int>(ceil_div(p.groups, ceil_div(p.groups, max_groups)));
  p.slices = static_cast<int>(ceil_div(p.groups, p.slice_groups));
  const size_t shared_bytes = p.slice_groups * (kTileBytes * p.chunks + kGroup * 16 * sizeof(float));
  const int resident = shared_bytes > 64 * 1024 ? 2 : 3;
  p.row_tiles = static_cast<int>(ceil_div(p.num_rows, 16));
  p.row_blocks =
      std::min<int>(ceil_div(p.row_tiles, kForwardWarps<E>), std::max(1, resident * multiprocessors() / p.slices));
  return launch(linear_forward_kernel<E, kTiles, kGroup, kWhole, kAhead>, int64_t{p.row_blocks} * p.slices,
                kForwardThreads<E>, shared_bytes, stream, p);
}

// The weights of one group of outputs are at most 64 KiB.
template <typename E>
cudaError_t LinearKernels<E>::forward(LinearPlan& p, cudaStream_t stream) {
  if constexpr (sizeof(E) == 4) {
    if (p.width <= 128) return launch_forward<E, 2, 4, false, true>(p, stream);
    if (p.width <= 256) return launch_forward<E, 2, 2, false, true>(p, stream);
    return launch_forward<E, 2, 1, false, true>(p, stream);
  } else {
    if (p.width <= 64) return launch_forward<E, 4, 4, true, true>(p, stream);
    if (p.width <= 128) return launch_forward<E, 8, 4, true, false>(p, stream);
    return launch_forward<E, 4, 4, false, true>(p, stream);
  }
}

}  // namespace recgrela::cuda
