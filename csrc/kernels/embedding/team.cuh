// A row held by the lanes of a team: its loads and stores, sums over it, and its dropout and LayerNorm.
#pragma once

#include "kernels/common/dropout.cuh"
#include "kernels/embedding/plan.cuh"

namespace recgrela::cuda {

// All lanes of a warp call the functions that add over a row. Columns after the end of a row hold zeros.
template <typename Shape>
class Team {
 public:
  static constexpr int kLanes = Shape::kTeamLanes, kVectors = Shape::kLaneVectors, kElements = 4 * kVectors;
  using Row = float[kElements];

  explicit __device__ Team(int width)
      : width_(width), column_(threadIdx.x % kLanes * 4), last_(column(kVectors - 1) < width) {}

  static __device__ int index() { return static_cast<int>(threadIdx.x) / kLanes; }  // of the team in its block
  __device__ int column(int vector) const { return column_ + vector * 4 * kLanes; }
  __device__ bool inside(int vector) const { return vector + 1 < kVectors || last_; }

  __device__ void load(const float* from, bool valid, Row& x) const {
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      float4 four = make_float4(0.f, 0.f, 0.f, 0.f);
      if (valid && inside(v)) four = *reinterpret_cast<const float4*>(from + column(v));
      x[4 * v] = four.x, x[4 * v + 1] = four.y, x[4 * v + 2] = four.z, x[4 * v + 3] = four.w;
    }
  }
  __device__ void store(float* to, const Row& x) const {
#pragma unroll
    for (int v = 0; v < kVectors; ++v)
      if (inside(v))
        *reinterpret_cast<float4*>(to + column(v)) = make_float4(x[4 * v], x[4 * v + 1], x[4 * v + 2], x[4 * v + 3]);
  }

  // Multiplies row `row` of y by the factors of its elements.
  __device__ void drop(const DropoutHash& hash, int64_t row, Row& x) const {
    const uint32_t first = static_cast<uint32_t>(row) * static_cast<uint32_t>(width_);
#pragma unroll
    for (int i = 0; i < kElements; ++i) x[i] *= hash.factor(first + column(i / 4) + i % 4);
  }

  // Subtracts the mean and divides by the standard deviation. Returns its reciprocal.
  __device__ float normalize(float eps, Row& x) const {
    float total = 0.f;
#pragma unroll
    for (int i = 0; i < kElements; ++i) total += x[i];
    const float mean = sum(total) / static_cast<float>(width_);
    total = 0.f;
#pragma unroll
    for (int i = 0; i < kElements; ++i) {
      x[i] = inside(i / 4) ? x[i] - mean : 0.f;
      total += x[i] * x[i];
    }
    const float reciprocal = rsqrtf(sum(total) / static_cast<float>(width_) + eps);
#pragma unroll
    for (int i = 0; i < kElements; ++i) x[i] *= reciprocal;
    return reciprocal;
  }

  // Converts d, the gradient of the normalized row x times the weight, to the gradient of the row.
  __device__ void normalize_backward(const Row& x, float reciprocal, Row& d) const {
    float total = 0.f, product = 0.f;
#pragma unroll
    for (int i = 0; i < kElements; ++i) total += d[i], product += d[i] * x[i];
    const float mean = sum(total) / static_cast<float>(width_), slope = sum(product) / static_cast<float>(width_);
#pragma unroll
    for (int i = 0; i < kElements; ++i) d[i] = reciprocal * (d[i] - mean - x[i] * slope);
  }

 private:
  // Sum over the lanes of the team.
  static __device__ float sum(float x) {
#pragma unroll
    for (int lanes = kLanes / 2; lanes > 0; lanes /= 2) x += __shfl_xor_sync(0xffffffffu, x, lanes);
    return x;
  }

  const int width_, column_;
  const bool last_;  // whether the lane's last vector is inside the row
};

}  // namespace recgrela::cuda
