// Gradient of the rows of mlp, for layers that the kernel by columns does not hold at once. Like the forward: for each
// chunk of hidden columns, a warp recomputes h and the gradient d_h in registers, which is the operand of d_x.
#pragma once

#include "kernels/mlp/activation.cuh"
#include "kernels/mlp/rows.cuh"
#include "kernels/mlp/weights.cuh"

namespace recgrela::cuda {

template <typename E, int kTiles>
__global__ void __launch_bounds__(32 * kMlpMaxWarps, MlpKernels<E, kTiles>::kRowBlocks)
    mlp_d_rows_kernel(const MlpPlan p) {
  [[maybe_unused]] constexpr int kUnroll = MlpKernels<E, kTiles>::kRowsInRegisters ? kTiles : 2;  // by nvcc
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  unsigned char* shared = dynamic_shared();
  const MlpWeights<E, kTiles> weights(p.group, shared);
  MlpRows<E, kTiles> x(shared, p.warps), d_z(shared, p.warps);
  const DropoutHash drop1(p.dropout1), drop2(p.dropout2), none(Dropout{});

  const unsigned step = p.warps * kTile, end = p.rows;
  for (unsigned begin = blockIdx.x * step; begin < end; begin += gridDim.x * step) {
    const int row = static_cast<int>(begin) + warp * kTile;
    x.load(p.x, row, p.rows, p.in, none);
    d_z.load(p.d_y, row, p.rows, p.out, drop2);
    Acc d_x[kTiles];
    for (int first = 0; first < p.hidden; first += p.group) {
      if (begin == blockIdx.x * step || p.group < p.hidden) {
        __syncthreads();
        weights.stage(p, first, p.dropout1.scale);
        __syncthreads();
      }
      const int columns = min(p.group, p.hidden - first);
      uint32_t index = static_cast<uint32_t>(row + lane / 4) * p.hidden_stride + first + tile_col(lane, 0, 0);
#pragma unroll 1
      for (int c = 0; c < columns; c += kTile, index += kTile) {
        const auto w = weights.at(c);
        ShortSum<E> h_sum, d_h_sum;
        h_sum.large = broadcast_columns(weights.b1() + c);
#pragma unroll kUnroll
        for (int k = 0; k < kTiles; ++k) {
          h_sum.add(x[k], w.right1(k));
          limit_overlap<E>();
          d_h_sum.add(d_z[k], w.template right2<true>(k));
          limit_overlap<E>();
        }
        Acc &h = h_sum.total(), &d_h = d_h_sum.total();
        activate_tile<E>(p.activation, h, d_h);
        drop_tile<false>(drop1, index, p.hidden_stride, d_h);
        const Split<E> a = to_split<E>(d_h);
#pragma unroll
        for (int n = 0; n < kTiles; ++n) {
          add_product(d_x[n], a, w.template right1<true>(n));
          limit_overlap<E>();
        }
      }
    }
    store_mlp_rows<E>(d_x, p.d_x, row, p.rows, p.in, none);
  }
}

template <typename E, int kTiles>
cudaError_t MlpKernels<E, kTiles>::d_rows(const MlpPlan& p, cudaStream_t stream) {
  return launch(mlp_d_rows_kernel<E, kTiles>, p.blocks, 32 * p.warps, row_bytes(p, 2), stream, p);
}

}  // namespace recgrela::cuda
