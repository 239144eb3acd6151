// LayerNorm of narrow rows. kLanes lanes of a warp hold a row: lane l has the columns 4 (l + kLanes g) .. + 3 of the
// groups g = 0 .. kGroups - 1, so that the loads of a float32 row are whole 128-byte lines.
#pragma once

#include "kernels/common/packed.cuh"
#include "kernels/common/params.h"

namespace recgrela::cuda {

// One lane's part of a row.
template <int kGroups>
struct RowPart {
  float x[kGroups][4];
};

template <int kGroups>
__device__ void add(RowPart<kGroups>& a, const RowPart<kGroups>& b) {
#pragma unroll
  for (int i = 0; i < 4 * kGroups; ++i) a.x[i / 4][i % 4] += b.x[i / 4][i % 4];
}

// The columns of one lane. kFull: the lanes' columns are exactly those of a row; otherwise the last columns are past
// its end, and hold zeros.
//
// kPairs: lane l has the columns c .. c + 3 and c + 8 .. c + 11, where c = 16 (l / 2) + 4 (l % 2), which have the same
// hashes for dropout.
template <int kLanes, int kGroups, bool kFull, bool kPairs = false>
class RowLanes {
  static_assert(!kPairs || kGroups == 2);
  static constexpr int kDistance = kPairs ? 8 : 4 * kLanes;  // of the columns of adjacent groups

 public:
  static constexpr int kRows = 32 / kLanes;  // that a warp processes at a time

  explicit __device__ RowLanes(int width)
      : first_(kPairs ? threadIdx.x % kLanes / 2 * 16 + threadIdx.x % 2 * 4 : 4 * (threadIdx.x % kLanes)),
        width_(width) {}

  // Index of the lane's row among those of the warp.
  static __device__ int row() { return static_cast<int>(threadIdx.x) % 32 / kLanes; }
  __device__ int column(int group) const { return static_cast<int>(first_) + kDistance * group; }
  __device__ bool valid(int group) const { return kFull || column(group) < width_; }

  // Address of the lane's first column of a row. Strides are below 2^26, so that the offset of the row is one product.
  // An absent matrix has an address too, which is not used.
  template <typename E>
  __device__ E* at(const RowMatrix& rows, uint32_t row) const {
    const uint32_t stride = static_cast<uint32_t>(rows.stride) * static_cast<uint32_t>(sizeof(E));
    const uint64_t offset = uint64_t{row} * stride + first_ * static_cast<uint32_t>(sizeof(E));
    return reinterpret_cast<E*>(reinterpret_cast<uintptr_t>(rows.data) + offset);
  }
  template <typename E>
  __device__ const E* at(const E* vector) const {
    return vector + first_;
  }

  // Loads a part of a row from the lane's first column on; zeros if not `active`.
  template <typename E>
  __device__ void load(const E* from, bool active, RowPart<kGroups>& part) const {
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
      Packed<E, 4> packed = {};
      if (active && valid(g)) packed = load_packed<E, 4>(from + kDistance * g);
      unpack(packed, part.x[g]);
    }
  }
  // Stores a part of a row if `active`.
  template <typename E>
  __device__ void store(E* to, bool active, const RowPart<kGroups>& part) const {
#pragma unroll
    for (int g = 0; g < kGroups; ++g)
      if (active && valid(g)) store_row(to + kDistance * g, 4, true, part.x[g]);
  }

  // Sum over the row of one value per lane, in every lane. All lanes of the warp call it.
  static __device__ float sum(float value) {
#pragma unroll
    for (int mask = kLanes / 2; mask > 0; mask /= 2) value += __shfl_xor_sync(0xffffffffu, value, mask);
    return value;
  }

  // Replaces a row by (row - mean) / sqrt(variance + eps), and returns the factor. inverse_width is 1 / width.
  __device__ float normalize(RowPart<kGroups>& row, float inverse_width, float eps) const {
    float mean;
    return normalize(row, inverse_width, eps, mean);
  }
  // The same, and sets the mean.
  __device__ float normalize(RowPart<kGroups>& row, float inverse_width, float eps, float& mean) const {
    float total = row.x[0][0];
#pragma unroll
    for (int i = 1; i < 4 * kGroups; ++i) total += row.x[i / 4][i % 4];
    mean = sum(total) * inverse_width;
    float squares = 0.f;
#pragma unroll
    for (int i = 0; i < 4 * kGroups; ++i) {
      float& x = row.x[i / 4][i % 4];
      x = valid(i / 4) ? x - mean : 0.f;
      squares += x * x;
    }
    const float factor = rsqrtf(sum(squares) * inverse_width + eps);
#pragma unroll
    for (int i = 0; i < 4 * kGroups; ++i) row.x[i / 4][i % 4] *= factor;
    return factor;
  }

 private:
  const uint32_t first_;
  const int width_;
};

// Sums over rows of the gradients of a LayerNorm's weight and bias, for the lane's columns.
template <int kLanes, int kGroups, bool kFull>
struct NormGradients {
  RowPart<kGroups> weight = {}, bias = {};

  // Replaces d_y by the gradient of the row before the norm. `normalized` and `factor` are those of normalize().
  __device__ void add(const RowLanes<kLanes, kGroups, kFull>& lanes, const RowPart<kGroups>& scale,
                      const RowPart<kGroups>& normalized, float factor, float inverse_width, RowPart<kGroups>& d_y) {
    float sum = 0.f, product = 0.f;
#pragma unroll
    for (int i = 0; i < 4 * kGroups; ++i) {
      float& d = d_y.x[i / 4][i % 4];
      const float x = normalized.x[i / 4][i % 4];
      weight.x[i / 4][i % 4] += d * x;
      bias.x[i / 4][i % 4] += d;
      d *= scale.x[i / 4][i % 4];
      sum += d;
      product += d * x;
    }
    sum = lanes.sum(sum) * inverse_width * factor;
    product = lanes.sum(product) * inverse_width * factor;
#pragma unroll
    for (int i = 0; i < 4 * kGroups; ++i) {
      float& d = d_y.x[i / 4][i % 4];
      d = d * factor - sum - normalized.x[i / 4][i % 4] * product;
    }
  }

  // Adds the sums of the block's lanes in a fixed order and stores them: [2, width], weight before bias. All threads of
  // the block call it; dynamic shared memory has shared_bytes(width, threads) bytes.
  __device__ void store(const RowLanes<kLanes, kGroups, kFull>& lanes, int width, float* partial) {
    float* const sums = reinterpret_cast<float*>(dynamic_shared());  // [warps, 2, width]
    float* const own = sums + threadIdx.x / 32 * 2 * width;
#pragma unroll
    for (int i = 0; i < 4 * kGroups; ++i) {
      float w = weight.x[i / 4][i % 4], b = bias.x[i / 4][i % 4];
#pragma unroll
      for (int mask = kLanes; mask < 32; mask *= 2) {
        w += __shfl_xor_sync(0xffffffffu, w, mask);
        b += __shfl_xor_sync(0xffffffffu, b, mask);
      }
      if (lanes.row() == 0 && lanes.valid(i / 4)) {
        const int column = lanes.column(i / 4) + i % 4;
        own[column] = w, own[width + column] = b;
      }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < 2 * width; i += blockDim.x) {
      float total = 0.f;
      for (int warp = 0; warp < static_cast<int>(blockDim.x) / 32; ++warp) total += sums[warp * 2 * width + i];
      partial[i] = total;
    }
  }
  static size_t shared_bytes(int width, int threads) { return sizeof(float) * 2 * width * (threads / 32); }
};

// Stores column i of the sums of [2, width] partial sums: the gradient of the weight, then of the bias.
struct StoreNormGradients {
  float *d_weight, *d_bias;
  int width;
  __device__ void operator()(int64_t column, float sum) const {
    (column < width ? d_weight : d_bias - width)[column] = sum;
  }
};

// Calls f(lanes, groups, full) with constants for a width of at most 256.
template <typename F>
cudaError_t dispatch_width(int width, F&& f) {
  auto with = [&](auto lanes, auto groups) {
    if (width == 4 * lanes * groups) return f(lanes, groups, std::true_type{});
    return f(lanes, groups, std::false_type{});
  };
  using std::integral_constant;
  if (width <= 32) return with(integral_constant<int, 8>{}, integral_constant<int, 1>{});
  if (width <= 64) return with(integral_constant<int, 8>{}, integral_constant<int, 2>{});
  if (width <= 128) return with(integral_constant<int, 16>{}, integral_constant<int, 2>{});
  return with(integral_constant<int, 32>{}, integral_constant<int, 2>{});
}

}  // namespace recgrela::cuda
