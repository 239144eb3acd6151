// Backward of linear for float32 rows. Blocks iterate over tiles of rows, whose elements they split once into the parts
// of split.cuh as they copy them to shared memory; the next rows are loaded before the products of the current ones.
// d_y arrives in chunks of outputs. The gradients of the weights stay in registers until the block's last tile: a warp
// holds a quarter of each chunk's outputs, for all columns of the slice or half of them. It also computes d_x of a
// quarter of the columns, for all rows of the tile or half of them.
#pragma once

#include <algorithm>

#include "kernels/common/split.cuh"
#include "kernels/common/stage.cuh"
#include "kernels/linear/plan.cuh"

namespace recgrela::cuda {

// kTiles: tiles of 16 outputs in a chunk. kHalves: 1 or 2, the parts that quarters of a tile are divided into.
template <int kTiles, int kChunks, int kHalves>
struct SplitBackward {
  static constexpr int kChunk = kTiles * 16, kOutputs = kChunks * kChunk, kColumns = 64, kRows = 32;
  static constexpr int kWarps = 4 * kHalves, kThreads = 32 * kWarps;
  // Blocks that a multiprocessor holds.
  static constexpr int kBlocks = kOutputs > 192 ? 1 : kOutputs > 64 ? 2 : 3;
  static constexpr int kXStride = stage_stride(kColumns), kDyStride = stage_stride(kChunk);
  // Elements of a part.
  static constexpr int kXPart = kRows * kXStride, kDyPart = kRows * kDyStride, kWeightPart = kOutputs * kXStride;

  static size_t shared_bytes(const LinearPlan&) {
    return kParts<float> * (kXPart + kDyPart + kWeightPart) * sizeof(Part<float>);
  }
  static void plan(LinearPlan& p) {
    p.slices = static_cast<int>(ceil_div(p.width, kColumns));
    p.row_tiles = static_cast<int>(ceil_div(p.num_rows, kRows));
    p.row_blocks = std::min(p.row_tiles, std::max(1, kBlocks * multiprocessors() / p.slices));
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
    for (int i = 0; i < kCount; ++i) {
      const uint32_t offset = static_cast<uint32_t>(i * kApart) * static_cast<uint32_t>(stride);
      x[i] = i * kApart < left ? *reinterpret_cast<const float4*>(from + offset) : float4{};
    }
  }
  __device__ void store(Part<float>* shared, int stride, int part_size) const {
    Part<float>* const to = shared + row() * stride + column();
#pragma unroll
    for (int i = 0; i < kCount; ++i)
      store_split4<float>(to + i * kApart * stride, part_size, {x[i].x, x[i].y, x[i].z, x[i].w});
  }
  // Adds the columns to `sums`.
  __device__ void add(float (&sums)[4]) const {
#pragma unroll
    for (int i = 0; i < kCount; ++i) sums[0] += x[i].x, sums[1] += x[i].y, sums[2] += x[i].z, sums[3] += x[i].w;
  }
};

template <int kTiles, int kChunks, int kHalves>
__global__ void __launch_bounds__(SplitBackward<kTiles, kChunks, kHalves>::kThreads,
                                  SplitBackward<kTiles, kChunks, kHalves>::kBlocks)
    linear_split_backward_kernel(const LinearPlan p) {
  using K = SplitBackward<kTiles, kChunks, kHalves>;
  constexpr int kOwnOutputs = kTiles / 4, kOwnColumns = K::kColumns / 16 / kHalves, kOwnRows = K::kRows / 16 / kHalves;
  [[maybe_unused]] constexpr int kUnroll = kTiles > 4 ? 2 : 1;  // by nvcc, as registers allow
  const int slice = blockIdx.x % p.slices, row_block = blockIdx.x / p.slices;
  const int first_column = slice * K::kColumns;
  const int lane = threadIdx.x % 32, quarter = threadIdx.x / 32 % 4, half = kHalves > 1 ? threadIdx.x / 128 : 0;
  Part<float>* const x = reinterpret_cast<Part<float>*>(dynamic_shared());
  Part<float>* const d_y = x + kParts<float> * K::kXPart;
  Part<float>* const weights = d_y + kParts<float> * K::kDyPart;

  using X = SplitVectors<K::kColumns, K::kRows, K::kThreads>;
  using DY = SplitVectors<K::kChunk, K::kRows, K::kThreads>;
  X next_x;
  DY next_d_y;
  auto load = [&](int tile, int chunk) {
    const int row = tile * K::kRows, output = chunk * K::kChunk + DY::column(), column = first_column + X::column();
    if (chunk == 0)
      next_x.load(p.x.row<const float>(row + X::row()) + column, p.x.stride,
                  column < p.width ? p.num_rows - row - X::row() : 0);
    const bool second = output >= p.first_outputs;
    const PlanRows from = p.rows_of(second);
    next_d_y.load(from.row<const float>(row + DY::row()) + output - (second ? p.first_outputs : 0), from.stride,
                  output < p.outputs ? p.num_rows - row - DY::row() : 0);
  };
  load(row_block, 0);

  if (p.d_x.data) {
#pragma unroll 2
    for (int i = threadIdx.x; i < K::kOutputs * K::kColumns / 4; i += K::kThreads) {
      const int output = i / (K::kColumns / 4), c = i % (K::kColumns / 4) * 4, column = first_column + c;
      const bool second = output >= p.first_outputs;
      float4 w = {};
      if (output < p.outputs && column < p.width)
        w = *reinterpret_cast<const float4*>(p.weight_of(second) +
                                             (second ? output - p.first_outputs : output) * p.width + column);
      store_split4<float>(weights + output * K::kXStride + c, K::kWeightPart, {w.x, w.y, w.z, w.w});
    }
  }

  Acc d_weight[kChunks][kOwnOutputs][kOwnColumns];
  float d_bias[kChunks][4] = {};
#pragma unroll 1
  for (int tile = row_block; tile < p.row_tiles; tile += p.row_blocks) {
    Acc d_x[kOwnRows];
    if constexpr (kChunks != 3)  // with 3, it has no registers left
      prefetch_passed<float, K::kRows, K::kColumns>(p, tile * K::kRows, first_column);
#pragma unroll
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      if (chunk == 0) next_x.store(x, K::kXStride, K::kXPart);
      next_d_y.store(d_y, K::kDyStride, K::kDyPart);
      next_d_y.add(d_bias[chunk]);
      __syncthreads();  // the parts have been written
      load(chunk + 1 == kChunks ? tile + p.row_blocks : tile, (chunk + 1) % kChunks);

#pragma unroll 1
      for (int row = 0; row < K::kRows; row += 16) {
        Split<float> d_yt[kOwnOutputs];
#pragma unroll
        for (int i = 0; i < kOwnOutputs; ++i)
          d_yt[i] = load_split<float, true>(d_y + row * K::kDyStride + (quarter * kOwnOutputs + i) * 16, K::kDyStride,
                                            K::kDyPart);
#pragma unroll
        for (int c = 0; c < kOwnColumns; ++c) {
          const auto right =
              load_right<float, true>(x + row * K::kXStride + (half * kOwnColumns + c) * 16, K::kXStride, K::kXPart);
#pragma unroll
          for (int i = 0; i < kOwnOutputs; ++i) add_product(d_weight[chunk][i][c], d_yt[i], right);
          limit_overlap<float>();
        }
      }
      if (p.d_x.data) {
        ShortSum<float> sums[kOwnRows];
#pragma unroll kUnroll
        for (int n = 0; n < K::kChunk; n += 16) {
          const auto right = load_right<float, true>(weights + (chunk * K::kChunk + n) * K::kXStride + quarter * 16,
                                                     K::kXStride, K::kWeightPart);
#pragma unroll
          for (int r = 0; r < kOwnRows; ++r)
            sums[r].add(
                load_split<float, false>(d_y + (half * kOwnRows + r) * 16 * K::kDyStride + n, K::kDyStride, K::kDyPart),
                right);
          limit_overlap<float>();
        }
#pragma unroll
        for (int r = 0; r < kOwnRows; ++r) {
          if (chunk == 0)
            d_x[r] = sums[r].total();
          else
            add_scaled(d_x[r], sums[r].total(), 1.f);
        }
      }
      __syncthreads();  // the parts have been read
    }
    const int column = first_column + quarter * 16, row = tile * K::kRows + half * kOwnRows * 16 + lane / 4;
    // Calls f with the address of each pair of elements that this lane has, and their sums.
    auto each_pair = [&](const PlanRows& rows, auto f) {
      if (!rows.data || column >= p.width) return;
      float* const first = rows.row<float>(row) + column + tile_col(lane, 0, 0);
#pragma unroll
      for (int i = 0; i < 4 * kOwnRows; ++i) {
        const int r = i / 4, h = i / 2 % 2, j = i % 2, down = 16 * r + 8 * h;
        const uint32_t offset = static_cast<uint32_t>(down) * static_cast<uint32_t>(rows.stride) + 8 * j;
        if (down < p.num_rows - row) f(first + offset, d_x[r].x[j][2 * h], d_x[r].x[j][2 * h + 1]);
      }
    };
    each_pair(p.d_passed, [](const float* from, float& x, float& y) {
      const float2 more = load2(from);
      x += more.x, y += more.y;
    });
    each_pair(p.d_x, [](float* to, float x, float y) { store2(to, x, y); });
  }

  float* const partials = p.partials + int64_t{row_block} * p.num_gradients;
#pragma unroll
  for (int t = 0; t < kChunks * kOwnOutputs * kOwnColumns; ++t) {
    const int chunk = t / (kOwnOutputs * kOwnColumns), i = t / kOwnColumns % kOwnOutputs, c = t % kOwnColumns;
    const int output = chunk * K::kChunk + (quarter * kOwnOutputs + i) * 16;
    const int column = first_column + (half * kOwnColumns + c) * 16;
    if (output >= p.outputs || column >= p.width) continue;
#pragma unroll
    for (int k = 0; k < 8; k += 2) {
      const int j = k / 4, e = k % 4;
      float* const to = partials + (output + tile_row(lane, e)) * p.width + column + tile_col(lane, j, 0);
      store2(to, d_weight[chunk][i][c].x[j][e], d_weight[chunk][i][c].x[j][e + 1]);
    }
  }
  if (!p.has_bias() || slice > 0) return;
  // Threads with the same outputs add up their sums.
  float* const sums = reinterpret_cast<float*>(dynamic_shared());  // [DY::kApart, kOutputs]
#pragma unroll
  for (int chunk = 0; chunk < kChunks; ++chunk)
    *reinterpret_cast<float4*>(sums + DY::row() * K::kOutputs + chunk * K::kChunk + DY::column()) =
        make_float4(d_bias[chunk][0], d_bias[chunk][1], d_bias[chunk][2], d_bias[chunk][3]);
  __syncthreads();
  for (int output = threadIdx.x; output < p.outputs; output += K::kThreads) {
    float sum = 0.f;
    for (int i = 0; i < DY::kApart; ++i) sum += sums[i * K::kOutputs + output];
    partials[p.width * p.outputs + output] = sum;
  }
}

template <int kTiles, int kChunks, int kHalves>
cudaError_t SplitBackward<kTiles, kChunks, kHalves>::run(const LinearPlan& p, cudaStream_t stream) {
  return launch(linear_split_backward_kernel<kTiles, kChunks, kHalves>, int64_t{p.row_blocks} * p.slices, kThreads,
                shared_bytes(p), stream, p);
}

}  // namespace recgrela::cuda
