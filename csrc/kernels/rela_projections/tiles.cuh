// Tiles of rows in shared memory for the backward of rela_projections: copies of gradients and of v, and norms of x.
#pragma once

#include "kernels/rela_projections/plan.cuh"

namespace recgrela::cuda {

constexpr int kGradientRows = 64;  // of a tile
// Columns of a row in shared memory: the gradients of v, gate and qk, and the inputs n, of two tiles in turn, and v.
constexpr int kGateColumn = kProjectionsColumns, kQkColumn = 2 * kProjectionsColumns;
constexpr int kGradientStride = stage_stride(kQkColumn + RelaProjectionsParams::kMaxOutputs);
constexpr int kValueColumn = 2 * kProjectionsColumns, kInputStride = stage_stride(3 * kProjectionsColumns);

// Copies of a tile to shared memory. A thread copies one of the tile's kVectors columns of 16-byte vectors, whose
// source has the address row_0 in row 0 and rows that are `stride` bytes apart. It writes zeros from row num_rows on.
template <typename E, int kVectors>
struct TileCopies {
  static constexpr int kVector = 16 / sizeof(E), kRows = kProjectionsThreads / kVectors;

  static __device__ int row() { return static_cast<int>(threadIdx.x) / kVectors; }
  static __device__ int column() { return static_cast<int>(threadIdx.x) % kVectors * kVector; }
  static __device__ uint32_t stride(const RowMatrix& rows) {
    return static_cast<uint32_t>(rows.stride) * static_cast<uint32_t>(sizeof(E));
  }
  static __device__ void start(E* shared, int shared_stride, uintptr_t row_0, uint32_t stride, int first_row,
                               int num_rows) {
    const int first = first_row + row(), left = num_rows - first;
    E* const to = shared + row() * shared_stride + column();
    const uintptr_t from = row_0 + uint64_t{static_cast<uint32_t>(first)} * stride;
#pragma unroll
    for (int i = 0; i < kGradientRows; i += kRows)
      copy_async16(to + i * shared_stride, reinterpret_cast<const void*>(from + uint64_t{stride} * i), i < left);
  }
  // Starts to load the same rows into the L2 cache. Eight vectors are a line; their threads share the rows.
  static __device__ void prefetch(uintptr_t row_0, uint32_t stride, int first_row, int num_rows) {
    const int i = static_cast<int>(threadIdx.x) % 8 * kRows, own = first_row + row() + i;
    if (i < kGradientRows && own < num_rows)
      prefetch_line(reinterpret_cast<const void*>(row_0 + uint64_t{static_cast<uint32_t>(own)} * stride));
  }
};

// Normalizes a tile of rows, four lanes a row.
template <typename E>
struct TileNorm {
  float4 x[kProjectionsTiles];

  static __device__ int row() { return static_cast<int>(threadIdx.x) / 4; }
  static __device__ int column() { return static_cast<int>(threadIdx.x) % 4 * 4; }

  __device__ void load(const RelaProjectionsPlan& p, int tile) {
    const int own = tile * kGradientRows + row();
    const float* const from = address<const float>(p.x, own, column());
#pragma unroll
    for (int t = 0; t < kProjectionsTiles; ++t)
      x[t] = own < p.rows && t * kTile < p.width ? *reinterpret_cast<const float4*>(from + t * kTile)
                                                 : make_float4(0, 0, 0, 0);
  }
  // Rows after the last become zeros. So do columns of padding, since an infinite one times 0 would be no number.
  __device__ void store(const RelaProjectionsPlan& p, int tile, E* inputs, float* factors) {
    float sum = 0.f, squares = 0.f;
#pragma unroll
    for (int t = 0; t < kProjectionsTiles; ++t) sum += (x[t].x + x[t].y) + (x[t].z + x[t].w);
    const float mean = quad_sum(sum) * p.inverse_width;
#pragma unroll
    for (int t = 0; t < kProjectionsTiles; ++t) {
      if (t * kTile >= p.width) continue;
      float4& v = x[t];
      v.x -= mean, v.y -= mean, v.z -= mean, v.w -= mean;
      squares += (v.x * v.x + v.y * v.y) + (v.z * v.z + v.w * v.w);
    }
    const float variance = quad_sum(squares) * p.inverse_width;
    const float factor = tile * kGradientRows + row() < p.rows ? rsqrtf(variance + p.eps) : 0.f;
    E* const to = inputs + row() * kInputStride + column();
#pragma unroll
    for (int t = 0; t < kProjectionsTiles; ++t)
      *reinterpret_cast<uint2*>(to + t * kTile) =
          make_uint2(pack2<E>(x[t].x * factor, x[t].y * factor), pack2<E>(x[t].z * factor, x[t].w * factor));
    if (column() == 0) factors[row()] = factor;
  }
};

}  // namespace recgrela::cuda
