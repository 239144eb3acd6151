// Gradients of the weights and biases of mlp, and of narrow rows.
//
// A warp owns 16 hidden columns and accumulates their gradients in registers over all rows of its block. It computes
// the transposed hidden layer, so that the weights are the operand A and all warps share the rows in shared memory as
// operand B; the sums are, activated, the operand A of the products that accumulate the gradients. For mlp_block, the
// rows are normalized when they are copied, and finished where they were; see block_rows.cuh.
#pragma once

#include "kernels/common/host.cuh"
#include "kernels/common/packed.cuh"
#include "kernels/mlp/activation.cuh"
#include "kernels/mlp/block_rows.cuh"
#include "kernels/mlp/rows.cuh"
#include "kernels/mlp/weights.cuh"

namespace recgrela::cuda {

// Rows of one operand in shared memory, split into parts.
template <typename E, int kTiles, int kRows>
struct MlpStep {
  using K = MlpKernels<E, kTiles>;
  static constexpr int kPartSize = kRows * K::kStride;
  static constexpr int kVector = 16 / sizeof(E), kVectors = K::kWidth / kVector;

  Part<E>* memory;

  __device__ explicit MlpStep(unsigned char*& shared) : memory(reinterpret_cast<Part<E>*>(shared)) {
    shared += kParts<E> * kPartSize * sizeof(Part<E>);
  }

  // Copies the rows from `first` on, with zeros after the last row and column. If kSum, each thread adds the values of
  // its columns to its kVector sums. All threads of the block call it.
  template <bool kSum>
  __device__ void stage(const RowMatrix& rows, int first, int num_rows, int width, const DropoutHash& drop,
                        float* sums) const {
#pragma unroll 1
    for (int i = threadIdx.x; i < kRows * kVectors; i += blockDim.x) {
      const int column = i % kVectors * kVector;
      const int row = first + i / kVectors;
      Packed<E, kVector> packed = {};
      if (row < num_rows && column < width)
        packed = *reinterpret_cast<const Packed<E, kVector>*>(static_cast<const E*>(rows.data) +
                                                              int64_t{row} * rows.stride + column);
      Part<E>* const to = memory + i / kVectors * K::kStride + column;
      if constexpr (kSum || sizeof(E) == 4) {
        float x[kVector];
        unpack(packed, x);
        if (drop.active()) {
          const uint32_t index = static_cast<uint32_t>(row) * static_cast<uint32_t>(width) + column;
          bool kept[kVector];
          drop.keep_next(index, kept);
#pragma unroll
          for (int j = 0; j < kVector; ++j) x[j] *= kept[j] ? drop.scale() : 0.f;
        }
        if constexpr (kSum) {
#pragma unroll
          for (int j = 0; j < kVector; ++j) sums[j] += x[j];
        }
#pragma unroll
        for (int j = 0; j < kVector; j += 4) {
          const float four[4] = {x[j], x[j + 1], x[j + 2], x[j + 3]};
          store_split4<E>(to + j, kPartSize, four);
        }
      } else {
        *reinterpret_cast<Packed<E, kVector>*>(to) = packed;
      }
    }
  }

  // Operand B, M[row][column] of a tile, or its transpose.
  template <bool kTranspose>
  __device__ RightSplit<E> load(int row, int tile) const {
    return load_right<E, kTranspose>(memory + row * K::kStride + tile * kTile, K::kStride, kPartSize);
  }
};

// Adds A times a column of ones to `sums`: lane l has the sums of rows l / 4 and l / 4 + 8 in elements 0 and 2.
template <typename E>
__device__ void add_row_sums(float (&sums)[4], const Split<E>& a) {
  const uint32_t one = pack2<Part<E>>(1.f, 1.f), ones[2] = {one, one};
  float sum[4] = {};
#pragma unroll
  for (int p = kParts<E> - 1; p >= 0; --p) mma16816<Part<E>>(sum, a.part[p].r, ones);
#pragma unroll
  for (int i = 0; i < 4; ++i) sums[i] += sum[i];
}

template <typename E, int kTiles, int kRows, bool kFused, typename Plan>
__global__ void __launch_bounds__(32 * MlpKernels<E, kTiles>::kMaxColumnWarps, 1) mlp_d_weights_kernel(const Plan p) {
  using K = MlpKernels<E, kTiles>;
  using Step = MlpStep<E, kTiles, kRows>;
  [[maybe_unused]] constexpr int kUnroll = kFused ? kTiles : 2;  // by nvcc, with few registers
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  // Blocks of different columns read the same rows at the same time.
  const int unit = blockIdx.x % (p.column_groups * K::kDivisions), group = unit / K::kDivisions;
  const int first_tile = unit % K::kDivisions * K::kAccTiles;
  const int row_block = blockIdx.x / (p.column_groups * K::kDivisions);
  const int columns = p.column_warps * kTile, first = group * columns, own = warp * kTile, column = first + own;

  unsigned char* shared = dynamic_shared();
  const MlpWeights<E, kTiles> weights(columns, shared);
  const Step x(shared), d_z(shared);
  Part<E>* const d_h_rows = reinterpret_cast<Part<E>*>(shared);  // [columns of whole panels, kRows], if kFused
  constexpr int kHiddenStride = stage_stride(kRows);
  const int d_h_part = K::panels(columns) * K::kPanel * kHiddenStride;
  if constexpr (kFused) {
    shared += kParts<E> * d_h_part * sizeof(Part<E>);
    // Columns of the last panel that no warp owns stay zeros.
    uint32_t* const zeros = reinterpret_cast<uint32_t*>(d_h_rows);
    for (int i = threadIdx.x; i < kParts<E> * d_h_part / 2; i += blockDim.x) zeros[i] = 0;
  }
  float* const d_b2 = reinterpret_cast<float*>(shared);  // [threads, kVector]
  [[maybe_unused]] const MlpBlockStep<E, kRows> block(x.memory, d_z.memory, d_b2);
  if constexpr (kHasNorm<Plan>) {
    block.start(p);
  } else {
#pragma unroll
    for (int j = 0; j < Step::kVector; ++j) d_b2[threadIdx.x * Step::kVector + j] = 0.f;
  }

  const DropoutHash drop1(p.dropout1), none(Dropout{});
  weights.stage(p, first, p.dropout1.scale);
  const auto w = weights.at(own);

  Acc d_w1[K::kAccTiles], d_w2[K::kAccTiles];  // [hidden, in] and [hidden, out]
  float d_b1[4] = {};
  int begin = row_block * kRows;
  for (; begin < p.rows; begin += p.row_blocks * kRows) {
    if constexpr (kHasNorm<Plan>) {
      block.stage(p, begin);
    } else {
      x.template stage<false>(p.x, begin, p.rows, p.in, none, nullptr);
      const DropoutHash drop2(p.dropout2);  // read again for each step, to save registers
      d_z.template stage<true>(p.d_y, begin, p.rows, p.out, drop2, d_b2 + threadIdx.x * Step::kVector);
    }
    __syncthreads();
    if constexpr (kHasNorm<Plan>) block.fetch(p, begin + p.row_blocks * kRows);
    if (column < p.hidden) {
#pragma unroll 1
      for (int row = 0; row < kRows; row += kTile) {
        ShortSum<E> h_sum, d_h_sum;
        const float bias[2] = {weights.b1()[own + lane / 4], weights.b1()[own + lane / 4 + 8]};
#pragma unroll
        for (int i = 0; i < 8; ++i) h_sum.large.x[i / 4][i % 4] = bias[i / 2 % 2];
#pragma unroll kUnroll
        for (int k = 0; k < kTiles; ++k) {
          h_sum.add(w.left1(k), x.template load<false>(row, k));
          limit_overlap<E>();
          d_h_sum.add(w.left2(k), d_z.template load<false>(row, k));
          limit_overlap<E>();
        }
        Acc &h = h_sum.total(), &d_h = d_h_sum.total();
        activate_tile<E>(p.activation, h, d_h);
        const uint32_t index =
            static_cast<uint32_t>(begin + row + tile_col(lane, 0, 0)) * p.hidden_stride + column + lane / 4;
        drop_tile<true>(drop1, index, p.hidden_stride, h, d_h);
        {
          const Split<E> a = to_split<E>(h);
#pragma unroll
          for (int k = 0; k < K::kAccTiles; ++k) {
            add_product(d_w2[k], a, d_z.template load<true>(row, first_tile + k));
            limit_overlap<E>();
          }
        }
        const Split<E> a = to_split<E>(d_h);
#pragma unroll
        for (int k = 0; k < K::kAccTiles; ++k) {
          add_product(d_w1[k], a, x.template load<true>(row, first_tile + k));
          limit_overlap<E>();
        }
        add_row_sums(d_b1, a);
        if constexpr (kFused) {
          Part<E>* const to = d_h_rows + (own + lane / 4) * kHiddenStride + row + tile_col(lane, 0, 0);
#pragma unroll
          for (int i = 0; i < kParts<E> * 4; ++i)
            *reinterpret_cast<uint32_t*>(to + i / 4 * d_h_part + i % 2 * 8 * kHiddenStride + i / 2 % 2 * 8) =
                a.part[i / 4].r[i % 4];
        }
      }
    }
    __syncthreads();
    if constexpr (kFused) {
      for (int tile = warp; tile < kRows / kTile * kTiles; tile += p.column_warps) {
        const int row = tile / kTiles * kTile, i = tile % kTiles;
        ShortSum<E> d_x;
#pragma unroll 1
        for (int f = 0; f < min(columns, p.hidden - first); f += K::kPanel) {
          const auto panel = weights.at(f);
          const Part<E>* const d_h = d_h_rows + f * kHiddenStride + row;
#pragma unroll
          for (int j = 0; j < K::kPanel; j += kTile)
            d_x.add(load_split<E, true>(d_h + j * kHiddenStride, kHiddenStride, d_h_part),
                    panel.template right1<true>(i, j));
        }
        const Acc one[1] = {d_x.total()};
        if (kHasNorm<Plan> && p.column_groups == 1) {
          const RowMatrix to{block.normed_gradient() + i * kTile, K::kStride};
          store_mlp_rows<float>(one, to, row, kRows, kTile, none);
        } else if (p.column_groups == 1) {
          const RowMatrix to{static_cast<E*>(p.d_x.data) + i * kTile, p.d_x.stride};
          store_mlp_rows<E>(one, to, begin + row, p.rows, p.in - i * kTile, none);
        } else {
          const RowMatrix to{p.d_x_sums + int64_t{group} * p.rows * p.in + i * kTile, p.in};
          store_mlp_rows<float>(one, to, begin + row, p.rows, p.in - i * kTile, none);
        }
      }
    }
    if constexpr (kHasNorm<Plan>) {
      if (p.column_groups == 1) {
        __syncthreads();
        block.finish(p, begin);
        __syncthreads();
      }
    }
  }

  // Computing the block's index again takes fewer registers than keeping it.
  const int index = kHasNorm<Plan> ? begin / kRows % p.row_blocks : row_block;
  float* const partials = p.partials + index * p.num_weights();
  float* const of_w2 = partials + int64_t{p.hidden} * p.in;
  float* const of_b1 = of_w2 + int64_t{p.hidden} * p.out;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const int f = column + tile_row(lane, i % 4), c = tile_col(lane, i / 4, i % 4);
    if (f >= p.hidden) continue;
#pragma unroll
    for (int k = 0; k < K::kAccTiles; ++k) {
      const int tile = (first_tile + k) * kTile;
      if (!kHasNorm<Plan> && tile < p.in) partials[int64_t{f} * p.in + tile + c] = d_w1[k].x[i / 4][i % 4];
      if (tile < p.out) of_w2[int64_t{f} * p.out + tile + c] = d_w2[k].x[i / 4][i % 4] * p.dropout1.scale;
    }
    if (i < 4 && i % 2 == 0 && lane % 4 == 0 && first_tile == 0) of_b1[f] = d_b1[i];
  }
  if constexpr (kHasNorm<Plan>) {
    const int64_t norm = (int64_t{index} * p.column_groups + group) * 2 * p.in;
    float* const of_norm = p.column_groups == 1 ? of_b1 + p.hidden + p.out : p.norm_partials + norm;
    block.store_norm_partials(p, column, d_w1, d_b1, partials, of_norm);
    if (group == 0) block.store_d_b2(p, of_b1 + p.hidden);
    return;
  }
  if (unit > 0) return;
  // Threads with the same columns add up their sums.
  __syncthreads();
  for (int c = threadIdx.x; c < p.out; c += blockDim.x) {
    float sum = 0.f;
    for (int i = c; i < static_cast<int>(blockDim.x) * Step::kVector; i += K::kWidth) sum += d_b2[i];
    of_b1[p.hidden + c] = sum;
  }
}

constexpr int kAddThreads = 256;

// Adds the groups' sums to d_x, four columns a thread.
template <typename E>
__global__ void __launch_bounds__(kAddThreads) mlp_add_rows_kernel(const MlpPlan p) {
  const int vectors = p.in / 4;
  const int64_t i = int64_t{blockIdx.x} * kAddThreads + threadIdx.x, row = i / vectors, c = i % vectors * 4;
  if (row >= p.rows) return;
  float sum[4] = {};
  for (int group = 0; group < p.column_groups; ++group) {
    const int64_t from = (int64_t{group} * p.rows + row) * p.in + c;
    const float4 x = *reinterpret_cast<const float4*>(p.d_x_sums + from);
    sum[0] += x.x, sum[1] += x.y, sum[2] += x.z, sum[3] += x.w;
  }
  store_row(static_cast<E*>(p.d_x.data) + row * p.d_x.stride + c, 4, true, sum);
}

template <typename E, int kTiles>
cudaError_t MlpKernels<E, kTiles>::d_weights(const MlpPlan& p, cudaStream_t stream) {
  const int64_t blocks = int64_t{p.row_blocks} * p.column_groups * kDivisions;
  const int threads = 32 * p.column_warps;
  if constexpr (kCanFuse) {
    if (p.fused) {
      RECGRELA_RETURN_IF_ERROR(launch(mlp_d_weights_kernel<E, kTiles, kStepRows, true, MlpPlan>, blocks, threads,
                                      column_bytes(p), stream, p));
      if (p.column_groups == 1) return cudaSuccess;
      const int64_t vectors = p.num_rows * (p.in / 4);
      return launch(mlp_add_rows_kernel<E>, ceil_div(vectors, kAddThreads), kAddThreads, 0, stream, p);
    }
  }
  const auto kernel = p.step_rows == kStepRows ? mlp_d_weights_kernel<E, kTiles, kStepRows, false, MlpPlan>
                                               : mlp_d_weights_kernel<E, kTiles, kFewStepRows, false, MlpPlan>;
  return launch(kernel, blocks, threads, column_bytes(p), stream, p);
}

}  // namespace recgrela::cuda
