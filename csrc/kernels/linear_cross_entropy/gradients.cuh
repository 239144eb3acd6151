// Second pass of linear_cross_entropy: gradients of weight and bias, over one split of the rows, by blocks that keep
// items; further blocks finish the rows (see rows.cuh). Normalizers of rows come from the first pass.
#pragma once

#include "kernels/linear_cross_entropy/rows.cuh"
#include "kernels/linear_cross_entropy/stream.cuh"

namespace recgrela::cuda {

template <typename E, int kWidth>
class ParametersPass {
 public:
  using Stream = EntropyStream<E, kWidth>;
  using Left = typename Stream::Left;
  static constexpr int R = Stream::R, kStage = Stream::kStage;
  static constexpr int kRowValues = Stream::kTiles.row_values;
  static_assert(kRowValues % kStage == 0);

  __device__ ParametersPass(const EntropyPlan& p, float* shared, int first_item)
      : p_(p),
        minus_log_sum_(shared),
        target_(reinterpret_cast<int*>(shared + kRowValues)),
        first_item_(first_item + threadIdx.x / 32 * kTile * R) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < 2 * R; ++i) {
      const int64_t item = first_item_ + kTile * (i / 2) + tile_row(lane, i % 2 * 2);
      bias_[i / 2].x[i % 2] = p.bias && item < p.num_items ? p.bias[item] : 0.f;
    }
  }

  __device__ void begin(int stage) {
    row_ += kStage;
    if (row_ < kRowValues) return;
    row_ = 0;
    __syncthreads();  // the last values have been read
    for (int i = threadIdx.x; i < kRowValues; i += kEntropyThreads) {
      const int64_t row = int64_t{stage} * kStage + i;
      const bool exists = row < p_.num_rows;
      minus_log_sum_[i] = exists ? kExponentShift<E> - log_sum(p_, row) : -INFINITY;
      // A target is compared with items; one out of range, which rows.cuh reports, is equal to none.
      const int64_t target = exists ? p_.target[row] : -1;
      target_[i] = target >= 0 && target < p_.num_items ? static_cast<int>(target) : -1;
    }
  }
  __device__ void synchronized(int /*stage*/) {}

  template <int kSteps>
  __device__ void coefficients(Acc (&s)[R], int /*stage*/, int column, Acc (& /*out*/)[R][kSteps], Left (&p)[R]) {
    const int lane = threadIdx.x % 32, first = row_ + column, own = first + tile_col(lane, 0, 0);
    if (p_.bias) {
#pragma unroll
      for (int r = 0; r < R; ++r)
#pragma unroll
        for (int i = 0; i < 8; ++i) s[r].x[i / 4][i % 4] += bias_[r].x[i / 2 % 2];
    }
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const float2 offset = load2(minus_log_sum_ + own + 8 * j);
#pragma unroll
      for (int r = 0; r < R; ++r)
#pragma unroll
        for (int e = 0; e < 4; ++e) s[r].x[j][e] = fast_exp2(fmaf(s[r].x[j][e], kLog2E, e % 2 ? offset.y : offset.x));
    }
    const int item = target_[first + lane % kTile] - first_item_;
    if (__any_sync(0xffffffffu, item >= 0 && item < kTile * R)) subtract_one_hot(s, own);
    if (p_.d_bias) {
#pragma unroll
      for (int r = 0; r < R; ++r)
#pragma unroll
        for (int i = 0; i < 8; ++i) sum[r].x[i / 2 % 2] += s[r].x[i / 4][i % 4];
    }
    if (p_.label_smoothing != 0.f) {
#pragma unroll
      for (int r = 0; r < R; ++r)
#pragma unroll
        for (int i = 0; i < 8; ++i) s[r].x[i / 4][i % 4] -= p_.spread;
    }
#pragma unroll
    for (int r = 0; r < R; ++r) p[r] = Stream::Operands::left(s[r]);
  }

  RowPair sum[R];  // of this lane's columns: d_bias without label smoothing

 private:
  __device__ void subtract_one_hot(Acc (&s)[R], int own) const {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int j = 0; j < 2; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int item = target_[own + 8 * j + e % 2] - first_item_ - tile_row(lane, e);
#pragma unroll
        for (int r = 0; r < R; ++r)
          if (item == kTile * r) s[r].x[j][e] -= p_.one_hot;
      }
  }

  const EntropyPlan& p_;
  float* const minus_log_sum_;     // [kRowValues]: log2 of the normalizer, shifted; -infinity after the last row
  int* const target_;              // [kRowValues]
  const int first_item_;           // of this warp
  int row_ = kRowValues - kStage;  // first row of the stage in the arrays
  RowPair bias_[R];
};

template <typename E, int kWidth>
__global__ void __launch_bounds__(kEntropyThreads, EntropyTiles::of(sizeof(E), kWidth).min_blocks)
    gradients_kernel(const EntropyPlan p) {
  using Stream = EntropyStream<E, kWidth>;
  if (blockIdx.x >= p.items.blocks()) {
    finish_rows<E, kWidth>(p, blockIdx.x - p.items.blocks());
    return;
  }
  float* const shared = reinterpret_cast<float*>(dynamic_shared() + Stream::kSharedBytes);
  const EntropyBlock<Stream> at(p.items, reinterpret_cast<int*>(shared + 2 * Stream::kTiles.row_values));
  ParametersPass<E, kWidth> pass(p, shared, at.first_row());
  Stream stream;
  stream.template run<true>(p.x_items, at.first_row(), p.num_items, p.x_hidden, p.num_rows, p.dim, at.first, at.last,
                            pass);

  const int first_item = at.first_row();
  const int64_t split = at.split();
  const float factor = 1.f / (p.coefficient_scale * p.num_rows);
  if (p.d_weight)
    stream.store(p.weight_partials ? p.weight_partials + split * p.num_items * p.dim : p.d_weight, first_item,
                 p.num_items, p.dim, factor);
  if (!p.d_bias) return;
  const int lane = threadIdx.x % 32;
  float* const d_bias = p.bias_partials ? p.bias_partials + split * p.num_items : p.d_bias;
#pragma unroll
  for (int i = 0; i < 2 * Stream::R; ++i) {
    const int64_t item = first_item + stream.warp_row + kTile * (i / 2) + tile_row(lane, i % 2 * 2);
    const float sum = quad_sum(pass.sum[i / 2].x[i % 2]) * factor;
    const float spread = split == 0 ? p.label_smoothing / p.num_items : 0.f;
    if (lane % 4 == 0 && item < p.num_items) d_bias[item] = sum - spread;
  }
}

}  // namespace recgrela::cuda
