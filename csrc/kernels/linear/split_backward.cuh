// Backward of linear for float32 rows and few outputs. Blocks iterate over tiles of rows, which they split once into
// the parts of split.cuh as they copy them to shared memory; the next tile is loaded before the products of the current
// one. The gradients of the weights stay in registers until the block's last tile: a warp holds a quarter of the
// outputs, for all columns of the slice. It also computes d_x of a quarter of the columns.
#pragma once

#include <algorithm>

#include "kernels/common/split.cuh"
#include "kernels/common/stage.cuh"
#include "kernels/linear/plan.cuh"

namespace recgrela::cuda {

// kTiles: tiles of 16 outputs, those of the last ones may be absent.
template <int kTiles>
struct SplitBackward {
  static constexpr int kOutputs = kTiles * 16, kColumns = 64, kRows = 32, kWarps = 4, kThreads = 32 * kWarps;
  static constexpr int kBlocks = kTiles > 4 ? 2 : 3;  // of a multiprocessor
  static constexpr int kXStride = stage_stride(kColumns), kDyStride = stage_stride(kOutputs);
  // Elements of a part.
  static constexpr int kXPart = kRows * kXStride, kDyPart = kRows * kDyStride, kWeightPart = kOutputs * kXStride;

  static size_t shared_bytes(const LinearPlan&) {
    return kParts<float> * (kXPart + kDyPart + kWeightPart) * sizeof(Part<float>);
  }
  static void plan(LinearPlan& p) {
    p.slices = static_cast<int>(ceil_div(p.width, kColumns));
    p.row_tiles = static_cast<int>(ceil_div(p.num_rows, kRows));
    p.row_blocks = std::min(p.row_tiles, std::max(1, kBlocks * multiprocessors() / p.slices));
    p.row_step = p.row_blocks * kRows;
  }
  static cudaError_t run(const LinearPlan& p, cudaStream_t stream);
};

// The vectors of four elements of a tile that a thread copies: one column of them, kApart rows apart.
template <int kColumns, int kRows, int kThreads>
struct SplitVectors {
  static constexpr int kVectors = kColumns / 4, kApart = kThreads / kVectors, kCount = kRows / kApart;
  float4 x[kCount];

  static __device__ int column() { return static_cast<int>(threadIdx.x) % kVectors * 4; }
  static __device__ int row() { return static_cast<int>(threadIdx.x) / kVectors; }

  // Loads from the thread's first element, which `left` rows follow, including its own; zeros after them.
  __device__ void load(const float* from, int stride, int left) {
#pragma unroll
    for (int i = 0; i < kCount; ++i)
      x[i] = i * kApart < left ? *reinterpret_cast<const float4*>(from + static_cast<uint32_t>(i * kApart) *
                                                                             static_cast<uint32_t>(stride))
                               : float4{};
  }
  __device__ void store(Part<float>* shared, int stride, int part_size) const {
    Part<float>* const to = shared + row() * stride + column();
#pragma unroll
    for (int i = 0; i < kCount; ++i)
      store_split4<float>(to + i * kApart * stride, part_size, {x[i].x, x[i].y, x[i].z, x[i].w});
  }
};

template <int kTiles>
__global__ void __launch_bounds__(SplitBackward<kTiles>::kThreads, SplitBackward<kTiles>::kBlocks)
    linear_split_backward_kernel(const LinearPlan p) {
  using K = SplitBackward<kTiles>;
  constexpr int kOwn = kTiles / K::kWarps, kColumnTiles = K::kColumns / 16, kRowTiles = K::kRows / 16;
  const int slice = blockIdx.x % p.slices, row_block = blockIdx.x / p.slices;
  const int first_column = slice * K::kColumns;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  Part<float>* const x = reinterpret_cast<Part<float>*>(dynamic_shared());
  Part<float>* const d_y = x + kParts<float> * K::kXPart;
  Part<float>* const weights = d_y + kParts<float> * K::kDyPart;

  using X = SplitVectors<K::kColumns, K::kRows, K::kThreads>;
  using DY = SplitVectors<K::kOutputs, K::kRows, K::kThreads>;
  X next_x;
  DY next_d_y;
  int tile = row_block;
  const bool second = DY::column() >= p.first_outputs;
  const int stride = p.rows_of(second).stride;
  const float* from_x = p.x.row<const float>(tile * K::kRows + X::row()) + first_column + X::column();
  const float* from_d_y =
      p.rows_of(second).row<const float>(tile * K::kRows + DY::row()) + DY::column() - (second ? p.first_outputs : 0);
  auto load_next = [&] {
    const int left = p.num_rows - tile * K::kRows;
    next_x.load(from_x, p.x.stride, first_column + X::column() < p.width ? left - X::row() : 0);
    next_d_y.load(from_d_y, stride, DY::column() < p.outputs ? left - DY::row() : 0);
    from_x += int64_t{p.row_step} * p.x.stride, from_d_y += int64_t{p.row_step} * stride;
  };
  load_next();

  if (p.d_x.data) {
#pragma unroll 2
    for (int i = threadIdx.x; i < K::kOutputs * K::kColumns / 4; i += K::kThreads) {
      const int output = i / (K::kColumns / 4), c = i % (K::kColumns / 4) * 4, column = first_column + c;
      const bool of_second = output >= p.first_outputs;
      float4 w = {};
      if (output < p.outputs && column < p.width)
        w = *reinterpret_cast<const float4*>(p.weight_of(of_second) +
                                             (of_second ? output - p.first_outputs : output) * p.width + column);
      store_split4<float>(weights + output * K::kXStride + c, K::kWeightPart, {w.x, w.y, w.z, w.w});
    }
  }

  Acc d_weight[kOwn][kColumnTiles];
  float d_bias[4] = {};
#pragma unroll 1
  for (; tile < p.row_tiles;) {
    next_x.store(x, K::kXStride, K::kXPart);
    next_d_y.store(d_y, K::kDyStride, K::kDyPart);
#pragma unroll
    for (int i = 0; i < DY::kCount; ++i) {
      d_bias[0] += next_d_y.x[i].x, d_bias[1] += next_d_y.x[i].y;
      d_bias[2] += next_d_y.x[i].z, d_bias[3] += next_d_y.x[i].w;
    }
    __syncthreads();  // the parts have been written
    const int row = tile * K::kRows;
    tile += p.row_blocks;
    load_next();

#pragma unroll 1
    for (int r = 0; r < kRowTiles; ++r) {
      Split<float> d_yt[kOwn];
#pragma unroll
      for (int i = 0; i < kOwn; ++i)
        d_yt[i] =
            load_split<float, true>(d_y + r * 16 * K::kDyStride + (warp * kOwn + i) * 16, K::kDyStride, K::kDyPart);
#pragma unroll
      for (int c = 0; c < kColumnTiles; ++c) {
        const auto right = load_right<float, true>(x + r * 16 * K::kXStride + c * 16, K::kXStride, K::kXPart);
#pragma unroll
        for (int i = 0; i < kOwn; ++i) add_product(d_weight[i][c], d_yt[i], right);
        limit_overlap<float>();
      }
    }
    if (p.d_x.data) {
      Acc d_x[kRowTiles];
#pragma unroll 2
      for (int n = 0; n < kTiles; ++n) {
        const auto right =
            load_right<float, true>(weights + n * 16 * K::kXStride + warp * 16, K::kXStride, K::kWeightPart);
#pragma unroll
        for (int r = 0; r < kRowTiles; ++r)
          add_product(d_x[r], load_split<float, false>(d_y + r * 16 * K::kDyStride + n * 16, K::kDyStride, K::kDyPart),
                      right);
        limit_overlap<float>();
      }
      const int column = first_column + warp * 16;
      if (column < p.width) {
        float* const to = p.d_x.row<float>(row + lane / 4) + column + tile_col(lane, 0, 0);
        const int left = p.num_rows - row - lane / 4;
#pragma unroll
        for (int i = 0; i < 4 * kRowTiles; ++i) {
          const int r = i / 4, j = i % 2, h = i / 2 % 2, down = 16 * r + 8 * h;
          if (down < left)
            store2(to + static_cast<uint32_t>(down) * static_cast<uint32_t>(p.d_x.stride) + 8 * j, d_x[r].x[j][2 * h],
                   d_x[r].x[j][2 * h + 1]);
        }
      }
    }
    __syncthreads();  // the parts have been read
  }

  float* const partials = p.partials + int64_t{row_block} * p.num_gradients;
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    const int output = (warp * kOwn + i) * 16;
    if (output >= p.outputs) continue;
#pragma unroll
    for (int c = 0; c < kColumnTiles; ++c) {
      const int column = first_column + c * 16;
      if (column >= p.width) continue;
#pragma unroll
      for (int k = 0; k < 8; k += 2) {
        const int j = k / 4, e = k % 4;
        float* const to = partials + (output + tile_row(lane, e)) * p.width + column + tile_col(lane, j, 0);
        store2(to, d_weight[i][c].x[j][e], d_weight[i][c].x[j][e + 1]);
      }
    }
  }
  if (!p.has_bias() || slice > 0) return;
  // Threads with the same outputs add up their sums.
  float4* const sums = reinterpret_cast<float4*>(dynamic_shared());
  sums[threadIdx.x] = make_float4(d_bias[0], d_bias[1], d_bias[2], d_bias[3]);
  __syncthreads();
  for (int o = threadIdx.x; o < p.outputs; o += K::kThreads) {
    float sum = 0.f;
    for (int i = o; i < K::kThreads * 4; i += K::kOutputs) sum += reinterpret_cast<const float*>(sums)[i];
    partials[p.width * p.outputs + o] = sum;
  }
}

template <int kTiles>
cudaError_t SplitBackward<kTiles>::run(const LinearPlan& p, cudaStream_t stream) {
  return launch(linear_split_backward_kernel<kTiles>, int64_t{p.row_blocks} * p.slices, kThreads, shared_bytes(p),
                stream, p);
}

}  // namespace recgrela::cuda
