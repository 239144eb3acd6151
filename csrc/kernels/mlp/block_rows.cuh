// Rows of mlp_block: the sum with the branch and its norm before the network, and the addition behind it.
//
// The norm's weight and bias are part of w1 and b1 in shared memory, so that the network takes normalized rows as they
// are. Their gradients follow from those of w1 and b1: with G the gradient of the scaled w1, d_w1 is
// weight G + bias d_b1, d_weight is the column sum of w1 G and d_bias that of w1 d_b1.
#pragma once

#include "kernels/common/norm.cuh"
#include "kernels/mlp/rows.cuh"

namespace recgrela::cuda {

// Factor of a row of the branch.
inline __device__ float path_factor(const MlpNorm& p, const DropoutHash& path, uint32_t row) {
  if (!path.active()) return 1.f;
  return path.factor(p.sequence ? static_cast<uint32_t>(__ldg(p.sequence + row)) : row);
}

// Calls f(constant): whether rows of `width` columns fill kTiles tiles, so that no column needs a check.
template <int kTiles, typename F>
__device__ void with_full_rows(int width, F f) {
  if (width == kTiles * kTile) {
    f(std::true_type{});
  } else {
    f(std::false_type{});
  }
}

// Loads 16 rows from `row` on, adds the branch, stores the sums and normalizes them.
template <typename E, int kTiles>
__device__ void load_step(const MlpBlockPlan& p, int row, MlpRows<E, kTiles>& x) {
  const int lane = threadIdx.x % 32, column = tile_col(lane, 0, 0);
  const DropoutHash path(p.drop_path);
  with_full_rows<kTiles>(p.in, [&](auto full) {
    auto inside = [&](int k) { return decltype(full)::value || 8 * k < p.in; };
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const uint32_t own = static_cast<uint32_t>(row + lane / 4 + 8 * h);
      const float* const from = static_cast<const float*>(p.x.data) + int64_t{own} * p.x.stride + column;
      float2 s[2 * kTiles] = {};
      if (own < static_cast<uint32_t>(p.rows)) {
#pragma unroll
        for (int k = 0; k < 2 * kTiles; ++k)
          if (inside(k)) s[k] = load2(from + 8 * k);
        if (p.branch.data) {
          const E* const branch = static_cast<const E*>(p.branch.data) + int64_t{own} * p.branch.stride + column;
          float* const sum = static_cast<float*>(p.sum.data) + int64_t{own} * p.sum.stride + column;
          const float factor = path_factor(p, path, own);
#pragma unroll
          for (int k = 0; k < 2 * kTiles; ++k) {
            if (!inside(k)) continue;
            const float2 z = load2(branch + 8 * k);
            s[k].x += factor * z.x, s[k].y += factor * z.y;
          }
#pragma unroll
          for (int k = 0; k < 2 * kTiles; ++k)
            if (inside(k)) store2(sum + 8 * k, s[k].x, s[k].y);
        }
      }
      float total = 0.f, squares = 0.f;
#pragma unroll
      for (int k = 0; k < 2 * kTiles; ++k) total += s[k].x + s[k].y;
      const float mean = quad_sum(total) * p.inverse_width;
#pragma unroll
      for (int k = 0; k < 2 * kTiles; ++k) {
        float2& v = s[k];
        v.x = inside(k) ? v.x - mean : 0.f, v.y = inside(k) ? v.y - mean : 0.f;
        squares += v.x * v.x + v.y * v.y;
      }
      const float factor = rsqrtf(quad_sum(squares) * p.inverse_width + p.eps);
#pragma unroll
      for (int k = 0; k < 2 * kTiles; ++k) x.set(k / 2, k % 2 * 2 + h, s[k].x * factor, s[k].y * factor);
    }
  });
}

// Stores the sums of the rows and of the network's output. The lanes have stored the former themselves.
template <typename E, int kTiles>
__device__ void store_step(const MlpBlockPlan& p, int row, Acc (&y)[kTiles]) {
  const int lane = threadIdx.x % 32, left = p.rows - row - lane / 4;
  const int64_t first_row = static_cast<uint32_t>(row + lane / 4);
  {
    const DropoutHash drop(p.dropout2);  // read again for each step, to save registers
    const uint32_t index = static_cast<uint32_t>(first_row) * static_cast<uint32_t>(p.out) + tile_col(lane, 0, 0);
    if (drop.active()) {
#pragma unroll
      for (int k = 0; k < kTiles; ++k)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          bool first, second;  // the columns c and c + 8
          drop.keep_pair(index + i / 2 * 8 * p.out + k * kTile + i % 2, first, second);
          y[k].x[0][i] *= first ? drop.scale() : 0.f, y[k].x[1][i] *= second ? drop.scale() : 0.f;
        }
    }
  }
  const RowMatrix& sums = p.branch.data ? p.sum : p.x;
  const float* from = static_cast<const float*>(sums.data) + first_row * sums.stride + tile_col(lane, 0, 0);
  float* to = static_cast<float*>(p.y.data) + first_row * p.y.stride + tile_col(lane, 0, 0);
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    __syncwarp();  // fewer loads at a time take fewer registers
    if (8 * h < left) {
      float2 s[2 * kTiles] = {};
#pragma unroll
      for (int k = 0; k < 2 * kTiles; ++k)
        if (8 * k < p.out) s[k] = load2(from + 8 * k);
#pragma unroll
      for (int k = 0; k < 2 * kTiles; ++k)
        if (8 * k < p.out) store2(to + 8 * k, s[k].x + y[k / 2].x[k % 2][2 * h], s[k].y + y[k / 2].x[k % 2][2 * h + 1]);
    }
    from += 8 * sums.stride, to += 8 * p.y.stride;
  }
}

using MlpBlockLanes = RowLanes<8, 2, false, true>;

// The end of the backward of a row: the norm's, the addition and the branch. `d` is the gradient of the normalized row,
// `normalized` and `factor` those of MlpBlockLanes::normalize(). Lanes that are not `active` have another lane's row.
template <typename E>
__device__ void finish_row(const MlpBlockPlan& p, const MlpBlockLanes& lanes, const DropoutHash& path, uint32_t row,
                           bool active, const RowPart<2>& normalized, float factor, RowPart<2>& d) {
  float sum = 0.f, product = 0.f;
#pragma unroll
  for (int i = 0; i < 8; ++i) sum += d.x[i / 4][i % 4], product += d.x[i / 4][i % 4] * normalized.x[i / 4][i % 4];
  sum = lanes.sum(sum) * p.inverse_width * factor;
  product = lanes.sum(product) * p.inverse_width * factor;
  RowPart<2> d_y;
  lanes.load(lanes.at<const float>(p.d_y, row), active, d_y);
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    float& x = d.x[i / 4][i % 4];
    x = x * factor - sum - normalized.x[i / 4][i % 4] * product + d_y.x[i / 4][i % 4];
  }
  lanes.store(lanes.at<float>(p.d_x, row), active, d);
  if (!p.d_branch.data) return;
  const float scale = path_factor(p, path, row);
#pragma unroll
  for (int i = 0; i < 8; ++i) d.x[i / 4][i % 4] *= scale;
  lanes.store(lanes.at<E>(p.d_branch, row), active, d);
}

// Rows of one step of the kernel by columns, which stages kRows normalized rows and d_y after dropout.
template <typename E, int kRows>
class MlpBlockStep {
  using K = MlpKernels<E, 4>;
  static constexpr int kPartSize = kRows * K::kStride;

 public:
  // `x` and `d_z` are the memory of the staged rows, one after the other; `sums` has 8 floats for each thread, two for
  // each row and 8 more.
  __device__ MlpBlockStep(Part<E>* x, Part<E>* d_z, float* sums) : x_(x), d_z_(d_z), d_b2_(sums) {}

  // All threads of the block call it first.
  __device__ void start(const MlpBlockPlan& p) const {
#pragma unroll
    for (int g = 0; g < 2; ++g) own_sums(g) = make_float4(0.f, 0.f, 0.f, 0.f);
    if (threadIdx.x == 0)
      hashes()[0] = DropoutHash(p.dropout2).shared(), hashes()[1] = DropoutHash(p.drop_path).shared();
    __syncthreads();
  }

  // Fetches the rows from `begin` on, which a later step stages, while this step computes.
  __device__ void fetch(const MlpBlockPlan& p, int begin) const {
    constexpr int kLines = K::kWidth * sizeof(float) / 128;  // of a row
    for (int i = threadIdx.x; i < 2 * kRows * kLines; i += blockDim.x) {
      const int row = begin + i / kLines % kRows, column = i % kLines * 32;
      const RowMatrix& rows = i < kRows * kLines ? p.x : p.d_y;
      if (row < p.rows && column < p.in)
        prefetch_line(static_cast<const float*>(rows.data) + row * rows.stride + column);
    }
  }

  // Stages the rows from `begin` on, and adds the columns of d_y after dropout. All threads of the block call it.
  __device__ void stage(const MlpBlockPlan& p, int begin) const {
    const MlpBlockLanes lanes(p.in);
    const DropoutHash drop(hashes()[0]);  // read again for each step, to save registers
#pragma unroll 1
    for (int i = threadIdx.x / 8; i < kRows; i += blockDim.x / 8) {
      const bool active = begin + i < p.rows;
      const uint32_t row = active ? begin + i : p.rows - 1;  // rows after the last have gradients of zero
      RowPart<2> s, d_y;
      lanes.load(lanes.at<const float>(p.x, row), true, s);
      lanes.load(lanes.at<const float>(p.d_y, row), active, d_y);
      float mean;
      const float factor = lanes.normalize(s, p.inverse_width, p.eps, mean);
      if (threadIdx.x % 8 == 0) statistics()[i] = make_float2(mean, factor);
      const uint32_t index = row * static_cast<uint32_t>(p.out) + lanes.column(0);
      if (drop.active()) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          bool first, second;
          drop.keep_pair(index + j, first, second);
          d_y.x[0][j] *= first ? drop.scale() : 0.f, d_y.x[1][j] *= second ? drop.scale() : 0.f;
        }
      }
#pragma unroll
      for (int g = 0; g < 2; ++g) {
        const int column = lanes.column(g);
        store_split4<E>(x_ + i * K::kStride + column, kPartSize, s.x[g]);
        store_split4<E>(d_z_ + i * K::kStride + column, kPartSize, d_y.x[g]);
        float4& sum = own_sums(g);
        sum = make_float4(sum.x + d_y.x[g][0], sum.y + d_y.x[g][1], sum.z + d_y.x[g][2], sum.w + d_y.x[g][3]);
      }
    }
  }

  // Gradients of the normalized rows, [kRows, kStride], in the memory of the staged rows.
  __device__ float* normed_gradient() const { return reinterpret_cast<float*>(x_); }

  // Stores the gradients of the step's rows. All threads of the block call it, between two barriers.
  __device__ void finish(const MlpBlockPlan& p, int begin) const {
    const MlpBlockLanes lanes(p.in);
    const DropoutHash path(hashes()[1]);
#pragma unroll 1
    for (int i = threadIdx.x / 8; i < kRows; i += blockDim.x / 8) {
      const bool active = begin + i < p.rows;
      const uint32_t row = active ? begin + i : p.rows - 1;
      const float2 statistic = statistics()[i];
      RowPart<2> s, d;
      lanes.load(lanes.at<const float>(p.x, row), true, s);
#pragma unroll
      for (int g = 0; g < 2; ++g) {
        const float4 v = *reinterpret_cast<const float4*>(normed_gradient() + i * K::kStride + lanes.column(g));
        d.x[g][0] = v.x, d.x[g][1] = v.y, d.x[g][2] = v.z, d.x[g][3] = v.w;
#pragma unroll
        for (int j = 0; j < 4; ++j) s.x[g][j] = lanes.valid(g) ? (s.x[g][j] - statistic.x) * statistic.y : 0.f;
      }
      finish_row<E>(p, lanes, path, row, active, s, statistic.y, d);
    }
  }

  // Stores partial sums of d_w1 and, [2, D] at `of_norm`, of the norm's gradients. d_w1 are the sums of the scaled
  // weights, of the warp's hidden columns from `column` on; d_b1 those of add_row_sums. All threads of the block call
  // it, after the last step.
  __device__ void store_norm_partials(const MlpBlockPlan& p, int column, const Acc (&d_w1)[4], const float (&d_b1)[4],
                                      float* of_w1, float* of_norm) const {
    constexpr int kWidth = K::kWidth;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    float* const sums = normed_gradient();  // [warps, 2, kWidth]
#pragma unroll
    for (int k = 0; k < 4; ++k) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int c = k * kTile + tile_col(lane, i / 2, i % 2);
        float of_weight = 0.f, of_bias = 0.f;
        if (k * kTile < p.in) {
          const float weight = __ldg(p.norm_weight + c), bias = __ldg(p.norm_bias + c);
#pragma unroll
          for (int h = 0; h < 2; ++h) {
            const int f = column + lane / 4 + 8 * h;
            if (f >= p.hidden) continue;
            const float sum = d_w1[k].x[i / 2][2 * h + i % 2], w = __ldg(p.w1 + int64_t{f} * p.in + c);
            of_w1[int64_t{f} * p.in + c] = weight * sum + bias * d_b1[2 * h];
            of_weight += w * sum, of_bias += w * d_b1[2 * h];
          }
        }
#pragma unroll
        for (int mask = 4; mask < 32; mask *= 2) {
          of_weight += __shfl_xor_sync(0xffffffffu, of_weight, mask);
          of_bias += __shfl_xor_sync(0xffffffffu, of_bias, mask);
        }
        if (lane < 4) sums[warp * 2 * kWidth + c] = of_weight, sums[(warp * 2 + 1) * kWidth + c] = of_bias;
      }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < 2 * p.in; i += blockDim.x) {
      float total = 0.f;
      for (int w = 0; w < p.column_warps; ++w) total += sums[(w * 2 + i / p.in) * kWidth + i % p.in];
      of_norm[i] = total;
    }
  }

  // Stores the sums of the columns of d_y after dropout. Barriers must have separated it from the last stage().
  __device__ void store_d_b2(const MlpBlockPlan& p, float* to) const {
    for (int c = threadIdx.x; c < p.out; c += blockDim.x) {
      const float* const sums = d_b2_ + c / 8 % 2 * 4 * blockDim.x;
      float total = 0.f;
      for (int i = c / 16 * 8 + c % 8; i < 4 * static_cast<int>(blockDim.x); i += 32) total += sums[i];
      to[c] = total;
    }
  }

 private:
  // Sums of the four columns of group g.
  __device__ float4& own_sums(int g) const { return reinterpret_cast<float4*>(d_b2_)[g * blockDim.x + threadIdx.x]; }
  // Mean and factor of each row.
  __device__ float2* statistics() const { return reinterpret_cast<float2*>(d_b2_ + 8 * blockDim.x); }
  // Dropout of the output, and DropPath.
  __device__ uint4* hashes() const { return reinterpret_cast<uint4*>(statistics() + kRows); }

  Part<E>* const x_;
  Part<E>* const d_z_;
  float* const d_b2_;
};

}  // namespace recgrela::cuda
