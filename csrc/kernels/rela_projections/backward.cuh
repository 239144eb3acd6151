// Backward of rela_projections. Blocks iterate over tiles of 64 rows. Asynchronous copies bring the gradients of the
// outputs and v to shared memory, and x, which is normalized again, passes through registers. The gradient of v is
// completed by the product that comes back from queries and keys. From these rows the warps add to the gradients of the
// weights, which stay in registers until the block's last tile, and compute the gradient of the norm and of x.
//
// With n = (x - mean) / sqrt(variance + eps), the gradient of a layer's weight is that of the product with n, scaled by
// norm_weight, plus norm_bias times the layer's bias gradient; and the gradients of norm_weight and norm_bias are sums
// over the outputs of these two times the weight. So the loop needs no sums for the norm's parameters.
#pragma once

#include <algorithm>

#include "kernels/rela_projections/tiles.cuh"

namespace recgrela::cuda {

template <typename E>
struct ProjectionsBackwardShared {
  // Operands of the products with transposed weights: for each half of the columns, those of a warp.
  static constexpr int kSteps = 2 * kProjectionsTiles;       // tiles of the inner dimension
  static constexpr int kHalf = kSteps * 2;                   // operands [kSteps, 2]
  static constexpr int kLayer = 2 * kHalf;                   // operands of a product
  static constexpr int kPartSums = 2 * kProjectionsColumns;  // of norm_weight and norm_bias

  uint4* in_weights;  // of in_weight and gate_weight
  uint4* qk_weights;
  E* gradients;        // [kGradientRows, kGradientStride]
  E* inputs;           // [kGradientRows, kInputStride]
  float2* sums;        // [2, kGradientRows]: sums over half a row of the gradient of n, and of its product with n
  float* factors;      // [2, kGradientRows]: 1 / sqrt(variance + eps)
  float* norm_weight;  // [kProjectionsColumns]
  static constexpr size_t kBytes = 2 * kLayer * kRightVectors * sizeof(uint4) +
                                   kGradientRows * (kGradientStride + kInputStride) * sizeof(E) +
                                   (6 * kGradientRows + kProjectionsColumns) * sizeof(float);

  __device__ ProjectionsBackwardShared() {
    in_weights = reinterpret_cast<uint4*>(dynamic_shared());
    qk_weights = in_weights + kLayer * kRightVectors;
    gradients = reinterpret_cast<E*>(qk_weights + kLayer * kRightVectors);
    inputs = gradients + kGradientRows * kGradientStride;
    sums = reinterpret_cast<float2*>(inputs + kGradientRows * kInputStride);
    factors = reinterpret_cast<float*>(sums + 2 * kGradientRows);
    norm_weight = factors + 2 * kGradientRows;
  }

  __device__ void stage_weights(const RelaProjectionsPlan& p) const {
    for (int i = threadIdx.x; i < kProjectionsColumns; i += kProjectionsThreads)
      norm_weight[i] = i < p.width ? p.norm_weight[i] : 0.f;
    stage_operands<E>(in_weights, kLayer, [&](int tile, int i, int k) {
      const int step = tile % kHalf / 2, column = float_column(tile / kHalf * 2 + tile % 2, i);
      const bool is_gate = step >= kProjectionsTiles;
      const float* const weight = is_gate ? p.gate_weight : p.in_weight;
      return weight ? weight_at(weight, p.width, p.width, step % kProjectionsTiles * kTile + k, column) : 0.f;
    });
    stage_operands<E>(qk_weights, kLayer, [&](int tile, int i, int k) {
      const int step = tile % kHalf / 2, column = (tile / kHalf * 2 + tile % 2) * kTile + i;
      return weight_at(p.qk_weight, p.outputs, p.width, step * kTile + k, column);
    });
  }
};

// The gradients of 32 outputs of one layer, which a warp adds up over all tiles of its block.
template <typename E>
struct LayerGradients {
  Acc weight[2][kProjectionsTiles];  // [outputs, columns of the layer's input]
  float biases[4] = {};  // in the even columns of an accumulator the first tile's, in the odd ones the second's

  __device__ void add(const E* gradients, const E* inputs) {
    const uint32_t one = pack2<E>(1.f, 1.f);
    const bool is_even = threadIdx.x / 4 % 2 == 0;
    const uint32_t even = is_even ? one : 0, odd = is_even ? 0 : one;
    const uint32_t ones[2][2] = {{even, even}, {odd, odd}};
#pragma unroll
    for (int r = 0; r < kGradientRows; r += kTile) {
      Operand<E> d[2];
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        d[j] = load_operand<E, true>(gradients + r * kGradientStride + j * kTile, kGradientStride);
        mma16816<E>(biases, d[j].r, ones[j]);
      }
#pragma unroll
      for (int t = 0; t < kProjectionsTiles; ++t) {
        const Operand<E> x = load_operand<E, true, true>(inputs + r * kInputStride + t * kTile, kInputStride);
#pragma unroll
        for (int j = 0; j < 2; ++j) mma(weight[j][t], d[j], x);
      }
    }
  }
  // Sum of output 16 j + l / 4 + 8 h.
  __device__ float bias(int j, int h) const { return biases[2 * h + j]; }
};

// Stores the sums of a block. `layer` is 0 for in_weight, 1 for gate_weight and 2 for qk_weight; `first` is the first
// of the warp's 32 outputs. Inputs of layers 0 and 1 are n, so that their sums are converted and added to those of the
// norm's parameters, norm_sums[c] and norm_sums[kProjectionsColumns + c].
template <typename E>
__device__ void store_gradients(const RelaProjectionsPlan& p, const LayerGradients<E>& sums, int layer, int first,
                                float* norm_sums) {
  const int lane = threadIdx.x % 32, before = layer == 0 ? 0 : layer == 1 || !p.has_gate() ? p.width : 2 * p.width;
  const int outputs = layer == 2 ? p.outputs : p.width;
  float* const partials = p.partials + int64_t{blockIdx.x} * p.num_gradients;
  float* const biases = partials + p.all_outputs() * p.width + before;
  const float* const weight = layer == 0 ? p.in_weight : p.gate_weight;
#pragma unroll
  for (int j = 0; j < 2; ++j)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int output = first + j * kTile + lane / 4 + 8 * h;
      if (output < outputs && lane % 4 == 0) biases[output] = sums.bias(j, h);
    }
#pragma unroll
  for (int t = 0; t < kProjectionsTiles; ++t)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int column = t * kTile + tile_col(lane, i / 2, i % 2);
      const bool exists = column < p.width;
      const float scale = layer == 2 || !exists ? 1.f : p.norm_weight[column];
      const float shift = layer == 2 || !exists ? 0.f : p.norm_bias[column];
      float d_scale = 0.f, d_shift = 0.f;
#pragma unroll
      for (int j = 0; j < 2; ++j)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const int output = first + j * kTile + lane / 4 + 8 * h;
          if (!exists || output >= outputs) continue;
          const float sum = sums.weight[j][t].x[i / 2][2 * h + i % 2], bias = sums.bias(j, h);
          partials[(before + output) * p.width + column] = sum * scale + bias * shift;
          if (layer == 2) continue;
          const float w = to_float(from_float<E>(weight[output * p.width + column]));
          d_scale += w * sum, d_shift += w * bias;
        }
      if (layer == 2) continue;
#pragma unroll
      for (int mask = 4; mask < 32; mask *= 2) {
        d_scale += __shfl_xor_sync(0xffffffffu, d_scale, mask);
        d_shift += __shfl_xor_sync(0xffffffffu, d_shift, mask);
      }
      if (lane < 4) norm_sums[column] = d_scale, norm_sums[kProjectionsColumns + column] = d_shift;
    }
}

// Adds the products of 16 rows of gradients and two operands of each of `steps` tiles of the inner dimension.
template <int kUnroll, typename E>
__device__ void add_row_products(Acc (&sums)[2], const E* gradients, const uint4* weights, int steps) {
#pragma unroll kUnroll
  for (int k = 0; k < steps; ++k) {
    const Operand<E> d = load_operand<E, false>(gradients + k * kTile, kGradientStride);
#pragma unroll
    for (int n = 0; n < 2; ++n) mma_right(sums[n], d, weights + (k * 2 + n) * kRightVectors);
  }
}

// Completes the gradient of v, 16 rows and 32 columns of which are `d_v`, by the one that comes back from qk.
template <typename E>
__device__ void complete_d_v(E* d_v, const E* d_qk, const uint4* weights, int steps) {
  const int lane = threadIdx.x % 32;
  Acc sums[2];
  E* const own = d_v + lane / 4 * kGradientStride + tile_col(lane, 0, 0);
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    float* const sum = sums[i / 4].x[i / 2 % 2] + i % 2 * 2;
    const float2 pair = load2(own + i % 2 * 8 * kGradientStride + i / 2 * 8);
    sum[0] = pair.x, sum[1] = pair.y;
  }
  add_row_products<2>(sums, d_qk, weights, steps);
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const float* const sum = sums[i / 4].x[i / 2 % 2] + i % 2 * 2;
    store2(own + i % 2 * 8 * kGradientStride + i / 2 * 8, sum[0], sum[1]);
  }
}

// The gradient of n: a lane has rows l / 4 and l / 4 + 8 and four adjacent columns of each of two tiles.
template <typename E>
struct NormGradient {
  Acc d[2];

  static __device__ float4 four(const E* n) {
    const uint2 packed = *reinterpret_cast<const uint2*>(n);
    const float2 low = unpack2<E>(packed.x), high = unpack2<E>(packed.y);
    return make_float4(low.x, low.y, high.x, high.y);
  }

  // Multiplies it by the norm's weight, and returns its sum and that of its product with n over this half of row h.
  __device__ float2 scale(int h, const float* weight, const E* n) {
    float sum = 0.f, product = 0.f;
#pragma unroll
    for (int t = 0; t < 2; ++t) {
      float (&low)[4] = d[t].x[0], (&high)[4] = d[t].x[1];
      const float4 w = *reinterpret_cast<const float4*>(weight + t * kTile), x = four(n + t * kTile);
      low[2 * h] *= w.x, low[2 * h + 1] *= w.y, high[2 * h] *= w.z, high[2 * h + 1] *= w.w;
      sum += (low[2 * h] + low[2 * h + 1]) + (high[2 * h] + high[2 * h + 1]);
      product += (low[2 * h] * x.x + low[2 * h + 1] * x.y) + (high[2 * h] * x.z + high[2 * h + 1] * x.w);
    }
    return make_float2(quad_sum(sum), quad_sum(product));
  }
  // Adds the gradient of x to `d_x`; mean and product are means over row h.
  __device__ void add_d_x(int h, int t, const E* n, float factor, float mean, float product, float4& d_x) const {
    const float (&low)[4] = d[t].x[0], (&high)[4] = d[t].x[1];
    const float4 x = four(n);
    d_x.x += factor * (low[2 * h] - mean - x.x * product);
    d_x.y += factor * (low[2 * h + 1] - mean - x.y * product);
    d_x.z += factor * (high[2 * h] - mean - x.z * product);
    d_x.w += factor * (high[2 * h + 1] - mean - x.w * product);
  }
};

template <typename E>
__global__ void __launch_bounds__(kProjectionsThreads, kProjectionsBlocks)
    rela_projections_backward_kernel(const RelaProjectionsPlan p) {
  using Shared = ProjectionsBackwardShared<E>;
  const Shared shared;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  // A warp owns 32 outputs of the layers, and in products by rows 16 rows and half of the columns.
  const int layer = warp < 2 ? 0 : warp < 4 ? 1 : 2, first_output = layer == 2 ? (warp - 4) * 32 : warp % 2 * 32;
  const bool owns_outputs = first_output < (layer == 2 ? p.outputs : p.width) && (layer != 1 || p.has_gate());
  const int first_row = warp % 4 * kTile, half = warp / 4, row = first_row + lane / 4;
  const int column = half * 32 + lane % 4 * 4;  // in products by rows, after which the lane has four of each tile

  using GradientCopies = TileCopies<E, 32>;
  using ValueCopies = TileCopies<E, 8>;
  // The thread copies columns of one of the gradients: row 0 of them, or 0 if they are absent.
  const int copied = GradientCopies::column();
  const bool of_qk = copied >= kQkColumn, of_gate = !of_qk && copied >= kGateColumn;
  const RowMatrix& source = of_qk ? p.d_qk : of_gate ? p.d_gate : p.d_v;
  const int source_column = copied % (of_qk ? kQkColumn : kProjectionsColumns);
  const uintptr_t source_row = source.data && source_column < (of_qk ? p.outputs : p.width)
                                   ? reinterpret_cast<uintptr_t>(source.data) + source_column * sizeof(E)
                                   : 0;
  const uint32_t source_stride = GradientCopies::stride(source);
  auto start_copies = [&](int tile) {
    if (tile >= p.row_tiles) return;
    const int first = tile * kGradientRows, value_column = ValueCopies::column();
    GradientCopies::start(shared.gradients, kGradientStride, source_row, source_stride, first, source_row ? p.rows : 0);
    ValueCopies::start(shared.inputs + kValueColumn, kInputStride,
                       reinterpret_cast<uintptr_t>(p.v.data) + value_column * sizeof(E), ValueCopies::stride(p.v),
                       first, value_column < p.width ? p.rows : 0);
    copies_commit();
  };
  // The rows of the next tile, and those of this one that are read last.
  auto prefetch = [&](int tile) {
    const int next = (tile + p.row_blocks) * kGradientRows, value_column = ValueCopies::column();
    GradientCopies::prefetch(source_row, source_stride, next, source_row ? p.rows : 0);
    ValueCopies::prefetch(reinterpret_cast<uintptr_t>(p.v.data) + value_column * sizeof(E), ValueCopies::stride(p.v),
                          next, value_column < p.width ? p.rows : 0);
    const int i = threadIdx.x % 4, line = i % 2 * 32;  // of two lines of x, and two of d_residual
    const RowMatrix& rows = i < 2 ? p.x : p.d_residual;
    const int own = (i < 2 ? next : tile * kGradientRows) + static_cast<int>(threadIdx.x) / 4;
    if (rows.data && own < p.rows && line < p.width) prefetch_line(address<const float>(rows, own, line));
  };

  int tile = blockIdx.x, buffer = 0;
  start_copies(tile);
  TileNorm<E> norm;
  norm.load(p, tile);
  shared.stage_weights(p);
  LayerGradients<E> sums;
#pragma unroll 1
  for (; tile < p.row_tiles; tile += p.row_blocks, buffer ^= 1) {
    E* const n = shared.inputs + buffer * kProjectionsColumns;
    float* const factors = shared.factors + buffer * kGradientRows;
    norm.store(p, tile, n, factors);
    copies_wait<0>();
    __syncthreads();

    prefetch(tile);
    E* const rows = shared.gradients + first_row * kGradientStride;
    complete_d_v(rows + half * 32, rows + kQkColumn, shared.qk_weights + half * Shared::kHalf * kRightVectors,
                 p.outputs / kTile);
    __syncthreads();

    if (owns_outputs) sums.add(shared.gradients + warp * 32, layer == 2 ? shared.inputs + kValueColumn : n);
    NormGradient<E> d_n;
    add_row_products<1>(d_n.d, rows, shared.in_weights + half * Shared::kHalf * kRightVectors,
                        p.has_gate() ? Shared::kSteps : kProjectionsTiles);
    const E* const own_n = n + row * kInputStride + column;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float2 sum = d_n.scale(h, shared.norm_weight + column, own_n + 8 * h * kInputStride);
      if (lane % 4 == 0) shared.sums[half * kGradientRows + row + 8 * h] = sum;
    }
    __syncthreads();  // and all gradients and values have been read

    start_copies(tile + p.row_blocks);
    const int own_row = tile * kGradientRows + row;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float* const to = address<float>(p.d_x, own_row + 8 * h, column);
      const float2 left = shared.sums[row + 8 * h], right = shared.sums[kGradientRows + row + 8 * h];
      const float mean = (left.x + right.x) * p.inverse_width, product = (left.y + right.y) * p.inverse_width;
      float4 d_x[2];
      const auto d_residual = reinterpret_cast<uintptr_t>(p.d_residual.data) +  // which may be absent
                              offset_of<float>(p.d_residual, own_row + 8 * h, column);
#pragma unroll
      for (int t = 0; t < 2; ++t) {
        const bool valid = own_row + 8 * h < p.rows && column + t * kTile < p.width && p.d_residual.data;
        d_x[t] = valid ? __ldg(reinterpret_cast<const float4*>(d_residual) + t * kTile / 4) : make_float4(0, 0, 0, 0);
      }
#pragma unroll
      for (int t = 0; t < 2; ++t) {
        d_n.add_d_x(h, t, own_n + 8 * h * kInputStride + t * kTile, factors[row + 8 * h], mean, product, d_x[t]);
        if (own_row + 8 * h < p.rows && column + t * kTile < p.width)
          *reinterpret_cast<float4*>(to + t * kTile) = d_x[t];
      }
    }
    norm.load(p, tile + p.row_blocks);
  }

  float* const norm_sums = reinterpret_cast<float*>(shared.gradients);  // [4, kPartSums]
  if (owns_outputs) store_gradients(p, sums, layer, first_output, norm_sums + warp * Shared::kPartSums);
  __syncthreads();
  float* const norm_partials = p.partials + int64_t{blockIdx.x} * p.num_gradients + p.all_outputs() * (p.width + 1);
  for (int i = threadIdx.x; i < 2 * p.width; i += kProjectionsThreads) {
    const int c = i < p.width ? i : kProjectionsColumns + i - p.width;
    float sum = 0.f;
    for (int w = 0; w < (p.has_gate() ? 4 : 2); ++w)
      if (w % 2 * 32 < p.width) sum += norm_sums[w * Shared::kPartSums + c];
    norm_partials[i] = sum;
  }
}

template <typename E>
bool RelaProjectionsKernels<E>::plan_backward(RelaProjectionsPlan& p) {
  constexpr int kBytes = static_cast<int>(ProjectionsBackwardShared<E>::kBytes);
  const int resident = std::clamp((p.max_shared_bytes + 1024) / (kBytes + 1024), 1, kProjectionsBlocks);
  p.row_tiles = static_cast<int>(ceil_div(p.num_rows, kGradientRows));
  p.row_blocks = std::min(p.row_tiles, resident * multiprocessors());
  return kBytes <= p.max_shared_bytes;
}

template <typename E>
cudaError_t RelaProjectionsKernels<E>::backward(const RelaProjectionsPlan& p, cudaStream_t stream) {
  return launch(rela_projections_backward_kernel<E>, p.row_blocks, kProjectionsThreads,
                ProjectionsBackwardShared<E>::kBytes, stream, p);
}

}  // namespace recgrela::cuda
