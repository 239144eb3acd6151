// Forward of rela_projections. A warp takes 16 rows at a time, straight from memory to registers, normalizes them and
// multiplies them by the weights, which are in shared memory as operands. The sums for v, rounded, are the operand of
// the product for queries and keys, so that v is stored but not read. Permuted columns make all accesses whole vectors.
#pragma once

#include <algorithm>

#include "kernels/rela_projections/plan.cuh"

namespace recgrela::cuda {

// Shared memory of the forward. Outputs are in groups of 32: two of v, two of the gate, and those of queries and keys.
template <typename E>
struct ProjectionsForwardShared {
  static constexpr int kGroup = 32, kInGroups = kProjectionsColumns / kGroup;
  static constexpr int kMaxGroups = 2 * kInGroups + RelaProjectionsParams::kMaxOutputs / kGroup;
  static constexpr int kGroupTiles = 2 * kProjectionsTiles, kGroupVectors = kGroupTiles * kRightVectors;
  static constexpr int kBiases = 16;  // vectors of a group

  uint4* weights;  // [groups, 2, kProjectionsTiles] operands
  float4* biases;  // [groups, 2, 2, 4]: for each half of a tile and lane of a quad, the start of its sums
  float *norm_weight, *norm_bias;

  __device__ ProjectionsForwardShared() {
    weights = reinterpret_cast<uint4*>(dynamic_shared());
    biases = reinterpret_cast<float4*>(weights + kMaxGroups * kGroupVectors);
    norm_weight = reinterpret_cast<float*>(biases + kMaxGroups * kBiases);
    norm_bias = norm_weight + kProjectionsColumns;
  }
  static constexpr size_t kBytes =
      kMaxGroups * (kGroupVectors + kBiases) * sizeof(uint4) + 2 * kProjectionsColumns * sizeof(float);

  // Stages a layer from group `first` on, whose inner dimension has the columns column_of(tile, k).
  template <typename ColumnOf>
  __device__ void stage_layer(int first, const float* weight, const float* bias, int outputs, int width,
                              ColumnOf column_of) const {
    const int groups = (outputs + kGroup - 1) / kGroup;
    stage_operands<E>(weights + first * kGroupVectors, groups * kGroupTiles, [&](int tile, int i, int k) {
      const int output = half_column(tile / kProjectionsTiles, i);
      return weight_at(weight, outputs, width, output, column_of(tile % kProjectionsTiles, k));
    });
    for (int i = threadIdx.x; i < groups * kBiases; i += kProjectionsThreads) {
      float pair[2];
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int output = half_column(i / 8, tile_col(i % 4, i / 4 % 2, e));
        pair[e] = bias && output < outputs ? bias[output] : 0.f;
      }
      biases[first * kBiases + i] = make_float4(pair[0], pair[1], pair[0], pair[1]);
    }
  }

  __device__ void stage(const RelaProjectionsPlan& p) const {
    for (int i = threadIdx.x; i < kProjectionsColumns; i += kProjectionsThreads) {
      norm_weight[i] = i < p.width ? p.norm_weight[i] : 0.f;
      norm_bias[i] = i < p.width ? p.norm_bias[i] : 0.f;
    }
    auto of_x = [](int tile, int k) { return float_column(tile, k); };
    auto of_v = [](int tile, int k) { return half_column(tile, k); };
    stage_layer(0, p.in_weight, p.in_bias, p.width, p.width, of_x);
    if (p.has_gate()) stage_layer(kInGroups, p.gate_weight, p.gate_bias, p.width, p.width, of_x);
    stage_layer(2 * kInGroups, p.qk_weight, p.qk_bias, p.outputs, p.width, of_v);
  }
};

// A warp's 16 rows of x: each lane holds rows l / 4 and l / 4 + 8, four adjacent columns of each tile.
struct StreamRows {
  float4 x[2][kProjectionsTiles];

  __device__ void load(const RelaProjectionsPlan& p, int tile) {
    const int lane = threadIdx.x % 32, row = tile * kTile + lane / 4;
    const float* const from = address<const float>(p.x, row, lane % 4 * 4);
    const int step = 8 * static_cast<int>(p.x.stride);
#pragma unroll
    for (int h = 0; h < 2; ++h)
#pragma unroll
      for (int t = 0; t < kProjectionsTiles; ++t) {
        const bool valid = row + 8 * h < p.rows && t * kTile < p.width;
        x[h][t] = valid ? *reinterpret_cast<const float4*>(from + h * step + t * kTile) : make_float4(0, 0, 0, 0);
      }
  }

  // Converts the rows to operands of their norms. Padding becomes zeros, since weight and bias are.
  template <typename E>
  __device__ void normalize(const RelaProjectionsPlan& p, const float* weight, const float* bias,
                            Operand<E> (&u)[kProjectionsTiles]) {
    float mean[2], factor[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float sum = 0.f, squares = 0.f;
#pragma unroll
      for (int t = 0; t < kProjectionsTiles; ++t) sum += (x[h][t].x + x[h][t].y) + (x[h][t].z + x[h][t].w);
      mean[h] = quad_sum(sum) * p.inverse_width;
#pragma unroll
      for (int t = 0; t < kProjectionsTiles; ++t) {
        float4& v = x[h][t];
        v.x -= mean[h], v.y -= mean[h], v.z -= mean[h], v.w -= mean[h];
        if (t * kTile < p.width) squares += (v.x * v.x + v.y * v.y) + (v.z * v.z + v.w * v.w);
      }
      factor[h] = rsqrtf(quad_sum(squares) * p.inverse_width + p.eps);
    }
    const int column = threadIdx.x % 4 * 4;
#pragma unroll
    for (int t = 0; t < kProjectionsTiles; ++t) {
      const float4 w = *reinterpret_cast<const float4*>(weight + t * kTile + column);
      const float4 b = *reinterpret_cast<const float4*>(bias + t * kTile + column);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const float4 v = x[h][t];
        u[t].r[h] = pack2<E>(v.x * factor[h] * w.x + b.x, v.y * factor[h] * w.y + b.y);
        u[t].r[2 + h] = pack2<E>(v.z * factor[h] * w.z + b.z, v.w * factor[h] * w.w + b.w);
      }
    }
  }
};

// One lane's place in the rows that a warp stores: rows l / 4 and l / 4 + 8, eight columns of each group.
template <typename E>
struct ProjectionRows {
  E* to;
  int step;  // elements between the two rows
  int left;  // rows from the first on
  int column;

  __device__ ProjectionRows(const RowMatrix& rows, int tile, int num_rows) {
    const int lane = threadIdx.x % 32, row = tile * kTile + lane / 4;
    column = lane % 4 * 8, left = num_rows - row;
    to = address<E>(rows, row, column), step = 8 * static_cast<int>(rows.stride);
  }
  __device__ void store(int group, int width, const Acc (&y)[2]) const {
    if (group * 32 + column >= width) return;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      uint32_t words[4];
#pragma unroll
      for (int k = 0; k < 4; ++k) words[k] = pack2<E>(y[0].x[k / 2][2 * h + k % 2], y[1].x[k / 2][2 * h + k % 2]);
      if (8 * h < left)  // the compiler splits plain stores into words
        __stcg(reinterpret_cast<uint4*>(to + h * step + group * 32),
               make_uint4(words[0], words[1], words[2], words[3]));
    }
  }
};

template <typename E>
__global__ void __launch_bounds__(kProjectionsThreads, kProjectionsBlocks)
    rela_projections_forward_kernel(const RelaProjectionsPlan p) {
  using Shared = ProjectionsForwardShared<E>;
  const Shared shared;
  shared.stage(p);
  __syncthreads();

  // The 32 outputs of a group.
  auto project = [&](const Operand<E>(&rows)[kProjectionsTiles], int group, Acc(&y)[2]) {
    const uint4* const weights = shared.weights + group * Shared::kGroupVectors;
    const float4* const biases = shared.biases + group * Shared::kBiases + threadIdx.x % 4;
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const float4 b = biases[(n * 2 + j) * 4];
        y[n].x[j][0] = b.x, y[n].x[j][1] = b.y, y[n].x[j][2] = b.z, y[n].x[j][3] = b.w;
      }
#pragma unroll
      for (int t = 0; t < kProjectionsTiles; ++t)
        mma_right(y[n], rows[t], weights + (n * kProjectionsTiles + t) * kRightVectors);
    }
  };

  const int stride = p.row_blocks * kProjectionsWarps;
  int tile = static_cast<int>(blockIdx.x * kProjectionsWarps + threadIdx.x / 32);
  StreamRows x;
  x.load(p, tile);
#pragma unroll 1
  for (; tile < p.row_tiles; tile += stride) {
    Operand<E> u[kProjectionsTiles], v[kProjectionsTiles];
    Acc y[2];
    x.normalize(p, shared.norm_weight, shared.norm_bias, u);
    x.load(p, tile + stride);
    const ProjectionRows<E> v_rows(p.v, tile, p.rows);
#pragma unroll
    for (int g = 0; g < Shared::kInGroups; ++g) {
      if (g * Shared::kGroup < p.width) {
        project(u, g, y);
        v_rows.store(g, p.width, y);
        v[2 * g] = to_operand<E>(y[0]), v[2 * g + 1] = to_operand<E>(y[1]);
      } else {
        v[2 * g] = v[2 * g + 1] = Operand<E>{};
      }
    }
    if (p.has_gate()) {
      const ProjectionRows<E> gate_rows(p.gate, tile, p.rows);
#pragma unroll 1
      for (int g = 0; g * Shared::kGroup < p.width; ++g) {
        project(u, Shared::kInGroups + g, y);
        gate_rows.store(g, p.width, y);
      }
    }
    const ProjectionRows<E> qk_rows(p.qk, tile, p.rows);
#pragma unroll 1
    for (int g = 0; g * Shared::kGroup < p.outputs; ++g) {
      project(v, 2 * Shared::kInGroups + g, y);
      qk_rows.store(g, p.outputs, y);
    }
  }
}

template <typename E>
cudaError_t RelaProjectionsKernels<E>::forward(RelaProjectionsPlan& p, cudaStream_t stream) {
  p.row_tiles = static_cast<int>(ceil_div(p.num_rows, kTile));
  p.row_blocks = static_cast<int>(
      std::min<int64_t>(ceil_div(p.row_tiles, kProjectionsWarps), kProjectionsBlocks * multiprocessors()));
  return launch(rela_projections_forward_kernel<E>, p.row_blocks, kProjectionsThreads,
                ProjectionsForwardShared<E>::kBytes, stream, p);
}

}  // namespace recgrela::cuda
