// First pass of linear_cross_entropy: maximum and sum of exponentials of each row's scores, and the items' weighted
// sum, over one split of the items.
//
// A row's maximum is only raised when exponentials become large, so that it is rarely computed: the sums of the
// exponentials, which are needed anyway, show when. Scores are in units of log 2.
#pragma once

#include "kernels/linear_cross_entropy/stream.cuh"

namespace recgrela::cuda {

template <typename E, int kWidth>
class SoftmaxPass {
 public:
  using Stream = EntropyStream<E, kWidth>;
  using Left = typename Stream::Left;
  static constexpr int R = Stream::R, kStage = Stream::kStage;
  static constexpr float kLimit = 32768.f;  // of a sum of exponentials; finite in fp16

  __device__ SoftmaxPass(const EntropyPlan& p, float* bias, int first) : p_(p), bias_(bias) {
#pragma unroll
    for (int r = 0; r < R; ++r) minus_max[r].x[0] = minus_max[r].x[1] = INFINITY;
    store_bias(first, bias_of(first));
  }

  __device__ void begin(int stage) { next_bias_ = bias_of(stage + 1); }
  __device__ void synchronized(int stage) { store_bias(stage + 1, next_bias_); }

  template <int kSteps>
  __device__ void coefficients(Acc (&s)[R], int stage, int column, Acc (&out)[R][kSteps], Left (&p)[R]) {
    if (p_.bias || stage >= static_cast<int>(p_.num_items / kStage)) {  // the last stage may have fewer items
      const float* const bias = bias_ + stage % 2 * kStage + column + tile_col(threadIdx.x % 32, 0, 0);
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const float2 b = load2(bias + 8 * j);
#pragma unroll
        for (int r = 0; r < R; ++r)
#pragma unroll
          for (int e = 0; e < 4; ++e) s[r].x[j][e] += e % 2 ? b.y : b.x;
      }
    }
    RowPair sums[R];
    if (__any_sync(0xffffffffu, !exponentiate(s, minus_max, sums, p))) {
      raise(s, out);
      RowPair offset[R];  // finite: exponentials are 0 if all scores so far are -infinity
#pragma unroll
      for (int i = 0; i < 2 * R; ++i) {
        const float x = minus_max[i / 2].x[i % 2];
        offset[i / 2].x[i % 2] = x == INFINITY ? 0.f : x;
      }
      exponentiate(s, offset, sums, p);
    }
#pragma unroll
    for (int r = 0; r < R; ++r) sum[r].x[0] += sums[r].x[0], sum[r].x[1] += sums[r].x[1];
  }

  RowPair minus_max[R];  // infinity before the first finite score
  RowPair sum[R];        // of this lane's columns

 private:
  __device__ float bias_of(int stage) const {
    const int64_t item = int64_t{stage} * kStage + threadIdx.x;
    if (threadIdx.x >= kStage) return 0.f;
    return item >= p_.num_items ? -INFINITY : p_.bias ? p_.bias[item] : 0.f;
  }
  __device__ void store_bias(int stage, float bias) {
    if (threadIdx.x < kStage) bias_[stage % 2 * kStage + threadIdx.x] = bias;
  }

  // Returns whether the sums are small enough.
  static __device__ bool exponentiate(const Acc (&s)[R], const RowPair (&offset)[R], RowPair (&sums)[R], Left (&p)[R]) {
    bool small = true;
#pragma unroll
    for (int r = 0; r < R; ++r) {
      Acc exponentials;
      sums[r] = {};
#pragma unroll
      for (int j = 0; j < 2; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const float x = fast_exp2(fmaf(s[r].x[j][e], kLog2E, offset[r].x[e / 2]));
          exponentials.x[j][e] = x;
          sums[r].x[e / 2] += x;
        }
      p[r] = Stream::Operands::left(exponentials);
      small = small && sums[r].x[0] <= kLimit && sums[r].x[1] <= kLimit;  // false for NaN
    }
    return small;
  }

  // Raises the maxima to those of the scores, and scales the sums so far.
  template <int kSteps>
  __device__ void raise(const Acc (&s)[R], Acc (&out)[R][kSteps]) {
#pragma unroll
    for (int r = 0; r < R; ++r) {
      RowPair factor;
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float highest = max(max(s[r].x[0][2 * h], s[r].x[0][2 * h + 1]), max(s[r].x[1][2 * h], s[r].x[1][2 * h + 1]));
        highest = max(highest, __shfl_xor_sync(0xffffffffu, highest, 1));
        highest = max(highest, __shfl_xor_sync(0xffffffffu, highest, 2));
        const float raised = min(minus_max[r].x[h], kExponentShift<E> - kLog2E * highest);
        factor.x[h] = minus_max[r].x[h] == raised ? 1.f : fast_exp2(raised - minus_max[r].x[h]);
        minus_max[r].x[h] = raised;
        sum[r].x[h] *= factor.x[h];
      }
#pragma unroll
      for (int k = 0; k < kSteps; ++k) scale_rows(out[r][k], factor);
    }
  }

  const EntropyPlan& p_;
  float* const bias_;  // [2, kStage]: bias of each item of a stage, -infinity after the last item
  float next_bias_ = 0.f;
};

template <typename E, int kWidth, bool kGradient>
__global__ void __launch_bounds__(kEntropyThreads, EntropyTiles::of(sizeof(E), kWidth).min_blocks)
    softmax_kernel(const EntropyPlan p) {
  using Stream = EntropyStream<E, kWidth>;
  float* const bias = reinterpret_cast<float*>(dynamic_shared() + Stream::kSharedBytes);
  const EntropyBlock<Stream> at(p.scores, reinterpret_cast<int*>(bias + 2 * Stream::kStage));
  SoftmaxPass<E, kWidth> pass(p, bias, at.first);
  Stream stream;
  stream.template run<kGradient>(p.x_hidden, at.first_row(), p.num_rows, p.x_items, p.num_items, p.dim, at.first,
                                 at.last, pass);

  const int first_row = at.first_row();
  const int64_t split = at.split();
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int r = 0; r < Stream::R; ++r)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int64_t row = first_row + stream.warp_row + kTile * r + tile_row(lane, 2 * h);
      const float sum = quad_sum(pass.sum[r].x[h]);
      if (lane % 4 == 0 && row < p.num_rows)
        p.row_partials[split * p.num_rows + row] = make_float2(-pass.minus_max[r].x[h], sum);
    }
  if constexpr (kGradient)
    stream.store(p.hidden_partials + split * p.num_rows * p.dim, first_row, p.num_rows, p.dim, 1.f);
}

}  // namespace recgrela::cuda
