// The product at the core of both passes of linear_cross_entropy, as in FlashAttention: a block keeps some rows X while
// the rows Y of the other matrix pass through shared memory. A pass turns scores S = X Y^T, 16 columns at a time, into
// coefficients P, and the sums O += P Y stay in registers:
//   softmax     X = hidden rows, Y = item rows, P = exponentials      -> normalizers, and d_hidden up to its one-hot
//   part parameters  X = item rows, Y = hidden rows, P = softmax - one-hot -> d_weight, d_bias
// Scores are accumulators of a product and, converted, the operand of the next one: they never leave a warp.
#pragma once

#include "kernels/common/activations.cuh"
#include "kernels/linear_cross_entropy/plan.cuh"

namespace recgrela::cuda {

// Exponentials of fp16 are computed times a power of two, because fp16 has few small numbers.
template <typename E>
constexpr float kExponentShift = 0.f;
template <>
constexpr float kExponentShift<fp16> = 8.f;

// Starts copies of the rows `first` .. `first` + `count` of a matrix to shared memory. Rows from `num_rows` on, and
// columns from `dim` on, become zeros.
template <typename E, int kWidth>
__device__ void stage_padded(E* shared, const RowMatrix& rows, int64_t first, int count, int64_t num_rows, int dim) {
  constexpr int kVector = 16 / sizeof(E), kVectors = kWidth / kVector, kStride = stage_stride(kWidth);
  static_assert(kEntropyThreads % kVectors == 0);
  const int c = static_cast<int>(threadIdx.x) % kVectors * kVector, row0 = static_cast<int>(threadIdx.x) / kVectors;
  const E* const source = static_cast<const E*>(rows.data) + c;
#pragma unroll 4
  for (int row = row0; row < count; row += kEntropyThreads / kVectors) {
    const bool valid = first + row < num_rows && c < dim;
    copy_async16(shared + row * kStride + c, valid ? source + (first + row) * rows.stride : rows.data, valid);
  }
}

template <typename E, int kWidth>
struct EntropyStream {
  static constexpr EntropyTiles kTiles = EntropyTiles::of(sizeof(E), kWidth);
  static constexpr int kSteps = kWidth / kTile, kStride = stage_stride(kWidth), kStage = kTiles.stage;
  static constexpr int R = kTiles.warp_tiles;
  static constexpr size_t kSharedBytes = size_t{kTiles.shared_rows()} * kStride * sizeof(E);

  E* const shared = reinterpret_cast<E*>(dynamic_shared());
  E* const kept = shared + (kTiles.in_registers ? 0 : 2 * kStage * kStride);  // [rows]
  const int warp_row = static_cast<int>(threadIdx.x) / 32 * kTile * R;        // first row of this warp
  Operand<E> x[R][kTiles.in_registers ? kSteps : 1];
  Acc out[R][kSteps];

  // Runs stages `first` .. `last` of the rows y. Calls
  //   pass.begin(stage)                          with all threads, before a stage's barrier
  //   pass.coefficients(scores, column, out, p)  with column: the first of the 16 within the stage
  //   pass.end(stage)
  template <bool kProduct, typename Pass>
  __device__ void run(const RowMatrix& x_rows, int64_t first_row, int64_t num_x_rows, const RowMatrix& y_rows,
                      int64_t num_y_rows, int dim, int first, int last, Pass& pass) {
    stage_padded<E, kWidth>(kept, x_rows, first_row, kTiles.rows, num_x_rows, dim);
    copies_commit();
    if constexpr (kTiles.in_registers) {
      copies_wait<0>();
      __syncthreads();
#pragma unroll
      for (int r = 0; r < R; ++r)
#pragma unroll
        for (int k = 0; k < kSteps; ++k)
          x[r][k] = load_operand<E, false>(kept + (warp_row + kTile * r) * kStride + kTile * k, kStride);
      __syncthreads();
    }
    stage_padded<E, kWidth>(shared, y_rows, int64_t{first} * kStage, kStage, num_y_rows, dim);
    copies_commit();
    for (int stage = first; stage < last; ++stage) {
      pass.begin(stage);
      copies_wait<0>();
      __syncthreads();
      const E* const y = shared + (stage - first) % 2 * (kStage * kStride);
      if (stage + 1 < last) {
        stage_padded<E, kWidth>(shared + (stage + 1 - first) % 2 * (kStage * kStride), y_rows,
                                int64_t{stage + 1} * kStage, kStage, num_y_rows, dim);
        copies_commit();
      }
#pragma unroll 1
      for (int column = 0; column < kStage; column += kTile) {
        Acc scores[R];
        multiply(y + column * kStride, scores);
        Operand<E> p[R];
        pass.coefficients(scores, column, out, p);
        if constexpr (kProduct) accumulate(y + column * kStride, p);
      }
      pass.end(stage);
    }
  }

  // scores = X Y^T for 16 rows of y
  __device__ void multiply(const E* y, Acc (&scores)[R]) const {
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
      const Operand<E> b = load_operand<E, false, true>(y + kTile * k, kStride);
#pragma unroll
      for (int r = 0; r < R; ++r) {
        if constexpr (kTiles.in_registers) {
          mma(scores[r], x[r][k], b);
        } else {
          mma(scores[r], load_operand<E, false>(kept + (warp_row + kTile * r) * kStride + kTile * k, kStride), b);
        }
      }
      limit_overlap<E>();
    }
  }

  // out += P Y
  __device__ void accumulate(const E* y, const Operand<E> (&p)[R]) {
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
      const Operand<E> b = load_operand<E, true, true>(y + kTile * k, kStride);
#pragma unroll
      for (int r = 0; r < R; ++r) mma(out[r][k], p[r], b);
      limit_overlap<E>();
    }
  }

  // Stores factor * out in rows of `dim` floats, up to the row `num_rows`.
  __device__ void store(float* to, int64_t first_row, int64_t num_rows, int dim, float factor) const {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int r = 0; r < R; ++r)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int64_t row = first_row + warp_row + kTile * r + tile_row(lane, 2 * h);
        if (row >= num_rows) continue;
#pragma unroll
        for (int k = 0; k < kSteps; ++k)
#pragma unroll
          for (int j = 0; j < 2; ++j) {
            const int column = kTile * k + tile_col(lane, j, 0);
            if (column < dim)
              store2(to + row * dim + column, out[r][k].x[j][2 * h] * factor, out[r][k].x[j][2 * h + 1] * factor);
          }
      }
  }
};

}  // namespace recgrela::cuda
