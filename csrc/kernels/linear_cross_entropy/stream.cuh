// The product at the core of both passes of linear_cross_entropy, as in FlashAttention: a block keeps some rows X while
// the rows Y of the other matrix pass through shared memory. A pass turns scores S = X Y^T, 16 columns at a time, into
// coefficients P, and the sums O += P Y stay in registers:
//   softmax     X = hidden rows, Y = item rows, P = exponentials: normalizers, and d_hidden up to its one-hot part
//   parameters  X = item rows, Y = hidden rows, P = softmax - one-hot: d_weight, d_bias
// Scores are accumulators of a product and, converted, the operand of the next one: they never leave a warp.
#pragma once

#include "kernels/common/activations.cuh"
#include "kernels/common/split.cuh"
#include "kernels/linear_cross_entropy/plan.cuh"

namespace recgrela::cuda {

// The operands of products: 16-bit numbers, or float32 as sums of such numbers.
template <typename E, bool kSplit>
struct EntropyOperands {
  using Element = Part<E>;
  using Left = Split<E>;
  using Right = RightSplit<E>;
  static constexpr int kNumParts = kParts<E>;

  static __device__ Left left(const Element* tile, int stride, int part_size) {
    return load_split<E, false>(tile, stride, part_size);
  }
  static __device__ Left left(const Acc& a) { return to_split<E>(a); }
  template <bool kTranspose>
  static __device__ Right right(const Element* tile, int stride, int part_size) {
    return load_right<E, kTranspose>(tile, stride, part_size);
  }
  static __device__ void add(Acc& d, const Left& a, const Right& b) { add_product<E>(d, a, b); }

  // Sum of few products. Tensor cores truncate their sums, so that the small products of parts have a sum of their own.
  struct ShortSum {
    Acc large, small;
    __device__ void add(const Left& a, const Right& b) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        mma16816<Element>(large.x[j], a.part[0].r, b.r[0][j]);
#pragma unroll
        for (int order = kNumParts - 1; order > 0; --order)
#pragma unroll
          for (int i = 0; i <= order; ++i) mma16816<Element>(small.x[j], a.part[i].r, b.r[order - i][j]);
      }
    }
    __device__ Acc total() const {
      Acc sum = large;
      if constexpr (kNumParts > 1) add_scaled(sum, small, 1.f);
      return sum;
    }
  };
};
// The operands of float32 as TF32 numbers, which are split at every use.
template <>
struct EntropyOperands<float, false> {
  using Element = float;
  using Left = Operand<float>;
  using Right = Operand<float>;
  static constexpr int kNumParts = 1;

  static __device__ Left left(const float* tile, int stride, int) { return load_operand<float, false>(tile, stride); }
  static __device__ Left left(const Acc& a) { return to_operand<float>(a); }
  template <bool kTranspose>
  static __device__ Right right(const float* tile, int stride, int) {
    return load_operand<float, kTranspose>(tile, stride);
  }
  static __device__ void add(Acc& d, const Left& a, const Right& b) { mma(d, a, b); }

  struct ShortSum {
    Acc sum;
    __device__ void add(const Left& a, const Right& b) { mma(sum, a, b); }
    __device__ Acc total() const { return sum; }
  };
};

template <typename E, int kWidth>
struct EntropyStream {
  static constexpr EntropyTiles kTiles = EntropyTiles::of(sizeof(E), kWidth);
  using Operands = EntropyOperands<E, kTiles.split || sizeof(E) == 2>;
  using Element = typename Operands::Element;
  using Left = typename Operands::Left;
  using Right = typename Operands::Right;
  static constexpr int kSteps = kWidth / kTile, kStride = kTiles.stride, kStage = kTiles.stage;
  static constexpr int R = kTiles.warp_tiles;
  static constexpr int kPartSize = kTiles.shared_rows() * kStride;  // of shared memory
  static constexpr size_t kSharedBytes = size_t{kPartSize} * Operands::kNumParts * sizeof(Element);

  Element* const shared = reinterpret_cast<Element*>(dynamic_shared());
  Element* const kept = shared + (kTiles.in_registers ? 0 : 2 * kStage * kStride);  // [rows]
  const int warp_row = static_cast<int>(threadIdx.x) / 32 * kTile * R;              // first row of this warp
  Left x[R][kTiles.in_registers ? kSteps : 1];
  Acc out[R][kSteps];

  __device__ Element* stage_of(int stage) const { return shared + stage % 2 * (kStage * kStride); }

  // Starts copies of kCount rows of a matrix, from the row `first` on, to shared memory. Rows from `num_rows` on, and
  // columns from `dim` on, become zeros.
  template <int kCount>
  static __device__ void start_copies(Element* to, const EntropyMatrix& matrix, int64_t first, int64_t num_rows,
                                      int dim) {
    constexpr int kVector = 16 / sizeof(Element), kVectors = kWidth / kVector, kStep = kEntropyThreads / kVectors;
    static_assert(kEntropyThreads % kVectors == 0 && kCount % kStep == 0);
    const int c = static_cast<int>(threadIdx.x) % kVectors * kVector, row0 = static_cast<int>(threadIdx.x) / kVectors;
    const Element* const source = static_cast<const Element*>(matrix.rows.data);
    const Element* from = source + (first + row0) * matrix.rows.stride + c;
    const int rows = num_rows - first < kCount ? static_cast<int>(num_rows - first) : kCount;
    to += row0 * kStride + c;
#pragma unroll(Operands::kNumParts > 1 ? 1 : 4)  // addresses take registers
    for (int i = 0; i < kCount / kStep; ++i) {
      const bool valid = row0 + i * kStep < rows && c < dim;
#pragma unroll
      for (int part = 0; part < Operands::kNumParts; ++part)
        copy_async16(to + part * kPartSize + i * (kStep * kStride), valid ? from + part * matrix.part_size : source,
                     valid);
      from += kStep * matrix.rows.stride;
    }
  }

  // Runs stages `first` .. `last` of the rows y. Calls
  //   pass.begin(stage), pass.synchronized(stage)  with all threads, before and after a stage's barrier
  //   pass.coefficients(scores, stage, column, out, p)  with column: the first of the 16 within the stage
  template <bool kProduct, typename Pass>
  __device__ void run(const EntropyMatrix& x_rows, int64_t first_row, int64_t num_x_rows, const EntropyMatrix& y_rows,
                      int64_t num_y_rows, int dim, int first, int last, Pass& pass) {
    start_copies<kTiles.rows>(kept, x_rows, first_row, num_x_rows, dim);
    copies_commit();
    if constexpr (kTiles.in_registers) {
      copies_wait<0>();
      __syncthreads();
#pragma unroll
      for (int r = 0; r < R; ++r)
#pragma unroll
        for (int k = 0; k < kSteps; ++k) x[r][k] = load_x(r, k);
      __syncthreads();
    }
    start_copies<kStage>(stage_of(first), y_rows, int64_t{first} * kStage, num_y_rows, dim);
    copies_commit();
    for (int stage = first; stage < last; ++stage) {
      pass.begin(stage);
      copies_wait<0>();
      __syncthreads();
      pass.synchronized(stage);
      const Element* const y = stage_of(stage);
      if (stage + 1 < last) {
        start_copies<kStage>(stage_of(stage + 1), y_rows, int64_t{stage + 1} * kStage, num_y_rows, dim);
        copies_commit();
      }
#pragma unroll 1
      for (int column = 0; column < kStage; column += kTile) {
        Acc scores[R];
        multiply(y + column * kStride, scores);
        Left p[R];
        pass.coefficients(scores, stage, column, out, p);
        if constexpr (kProduct) accumulate(y + column * kStride, p);
      }
    }
  }

  __device__ Left load_x(int r, int k) const {
    return Operands::left(kept + (warp_row + kTile * r) * kStride + kTile * k, kStride, kPartSize);
  }

  // scores = X Y^T for 16 rows of y
  __device__ void multiply(const Element* y, Acc (&scores)[R]) const {
    typename Operands::ShortSum sums[R];
#pragma unroll(kTiles.in_registers ? kSteps : 4)  // overlapping steps take registers
    for (int k = 0; k < kSteps; ++k) {
      const Right b = Operands::template right<false>(y + kTile * k, kStride, kPartSize);
#pragma unroll
      for (int r = 0; r < R; ++r) {
        if constexpr (kTiles.in_registers)
          sums[r].add(x[r][k], b);
        else
          sums[r].add(load_x(r, k), b);
      }
      limit_overlap<E>();
    }
#pragma unroll
    for (int r = 0; r < R; ++r) scores[r] = sums[r].total();
  }

  // out += P Y
  __device__ void accumulate(const Element* y, const Left (&p)[R]) {
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
      const Right b = Operands::template right<true>(y + kTile * k, kStride, kPartSize);
#pragma unroll
      for (int r = 0; r < R; ++r) Operands::add(out[r][k], p[r], b);
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

// The share of a block: a tile of kept rows, and stages of passing rows. What the loop over the stages does not need is
// in shared memory, because it takes all registers.
template <typename Stream>
class EntropyBlock {
 public:
  // All threads of the block construct it; it ends with a barrier.
  __device__ EntropyBlock(const EntropyGrid& grid, int* shared) : shared_(shared) {
    const int tiles = static_cast<int>(grid.tiles), block = static_cast<int>(blockIdx.x), split = block / tiles;
    const int64_t begin = split * grid.stages_per_split, end = begin + grid.stages_per_split;
    first = static_cast<int>(begin), last = static_cast<int>(end < grid.stages ? end : grid.stages);
    if (threadIdx.x == 0) shared[0] = block % tiles * Stream::kTiles.rows, shared[1] = split;
    __syncthreads();
  }
  __device__ int first_row() const { return shared_[0]; }
  __device__ int split() const { return shared_[1]; }

  int first, last;  // stages

 private:
  const int* const shared_;
};

}  // namespace recgrela::cuda
