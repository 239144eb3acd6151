// Forward of mlp. A warp processes 16 rows: for each chunk of hidden columns, the sums of the first product become,
// activated, the operand of the second product, so that the hidden layer never leaves the warp's registers.
#pragma once

#include "kernels/mlp/activation.cuh"
#include "kernels/mlp/rows.cuh"
#include "kernels/mlp/weights.cuh"

namespace recgrela::cuda {

template <typename E, int kTiles, typename Plan>
__global__ void __launch_bounds__(32 * MlpKernels<E, kTiles>::kForwardWarps, MlpKernels<E, kTiles>::kForwardBlocks)
    mlp_forward_kernel(const Plan p) {
  using K = MlpKernels<E, kTiles>;
  constexpr int kChunk = K::kChunkTiles;
  [[maybe_unused]] constexpr int kUnroll = K::kRowsInRegisters ? kTiles : 2;  // by nvcc
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  unsigned char* shared = dynamic_shared();
  const MlpWeights<E, kTiles> weights(p.group, shared);
  float* const b2 = reinterpret_cast<float*>(shared);
  shared += K::kWidth * sizeof(float);
  MlpRows<E, kTiles> x(shared, p.warps);
  const DropoutHash drop1(p.dropout1);
  for (int i = threadIdx.x; i < K::kWidth; i += blockDim.x) b2[i] = i < p.out ? p.b2[i] : 0.f;

  const unsigned step = p.warps * kTile, end = p.rows;
  for (unsigned begin = blockIdx.x * step; begin < end; begin += gridDim.x * step) {
    const int row = static_cast<int>(begin) + warp * kTile;
    load_step(p, row, x);
    Acc y[kTiles];
    for (int first = 0; first < p.hidden; first += p.group) {
      if (begin == blockIdx.x * step || p.group < p.hidden) {
        __syncthreads();
        weights.stage(p, first, p.dropout1.scale);
        __syncthreads();
      }
      if (first == 0) {
#pragma unroll
        for (int n = 0; n < kTiles; ++n) y[n] = broadcast_columns(b2 + n * kTile);
      }
      const int columns = min(p.group, p.hidden - first);
      uint32_t index = static_cast<uint32_t>(row + lane / 4) * p.hidden_stride + first + tile_col(lane, 0, 0);
#pragma unroll 1
      for (int c = 0; c < columns; c += kChunk * kTile, index += kChunk * kTile) {
        const auto w = weights.at(c);
        ShortSum<E> sums[kChunk];
#pragma unroll
        for (int i = 0; i < kChunk; ++i) sums[i].large = broadcast_columns(weights.b1() + c + i * kTile);
#pragma unroll kUnroll
        for (int k = 0; k < kTiles; ++k) {
          const Split<E> rows = x[k];
#pragma unroll
          for (int i = 0; i < kChunk; ++i) sums[i].add(rows, w.right1(k, i * kTile));
          limit_overlap<E>();
        }
        Split<E> a[kChunk];
#pragma unroll
        for (int i = 0; i < kChunk; ++i) {
          Acc& h = sums[i].total();
          activate_tile<E>(p.activation, h);
          drop_tile<false>(drop1, index + i * kTile, p.hidden_stride, h);
          a[i] = to_split<E>(h);
          limit_overlap<E>();
        }
#pragma unroll
        for (int n = 0; n < kTiles; ++n) {
#pragma unroll
          for (int i = 0; i < kChunk; ++i) add_product(y[n], a[i], w.right2(n, i * kTile));
          limit_overlap<E>();
        }
      }
    }
    store_step<E>(p, row, y);
  }
}

template <typename E, int kTiles>
cudaError_t MlpKernels<E, kTiles>::forward(const MlpPlan& p, cudaStream_t stream) {
  return launch(mlp_forward_kernel<E, kTiles, MlpPlan>, p.blocks, 32 * p.warps, row_bytes(p, 1), stream, p);
}

}  // namespace recgrela::cuda
