// A team: the lanes that hold a row, with its dropout.
#pragma once

#include "kernels/common/dropout.cuh"
#include "kernels/common/norm.cuh"
#include "kernels/embedding/plan.cuh"

namespace recgrela::cuda {

template <int kLanes, int kGroups, bool kFull>
class Team : public RowLanes<kLanes, kGroups, kFull> {
 public:
  using Row = RowPart<kGroups>;
  static constexpr int kTeams = kEmbeddingThreads / kLanes;  // of a block

  explicit __device__ Team(int width) : RowLanes<kLanes, kGroups, kFull>(width), width_(width) {}

  static __device__ int index() { return static_cast<int>(threadIdx.x) / kLanes; }  // of the team in its block

  // Loads a row of any memory, with no hint for the caches; zeros if not `active`.
  __device__ void read(const float* row, bool active, Row& x) const {
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
      float4 four = make_float4(0.f, 0.f, 0.f, 0.f);
      if (active && this->valid(g)) four = *reinterpret_cast<const float4*>(row + this->column(g));
      x.x[g][0] = four.x, x.x[g][1] = four.y, x.x[g][2] = four.z, x.x[g][3] = four.w;
    }
  }
  __device__ void write(float* row, const Row& x) const {
#pragma unroll
    for (int g = 0; g < kGroups; ++g)
      if (this->valid(g))
        *reinterpret_cast<float4*>(row + this->column(g)) = make_float4(x.x[g][0], x.x[g][1], x.x[g][2], x.x[g][3]);
  }

  // Bits of the elements of a row of y that the lane holds, set for those that dropout keeps.
  __device__ uint32_t kept(const DropoutHash& hash, int row) const {
    if (!hash.active()) return ~0u;
    const uint32_t first = static_cast<uint32_t>(row) * static_cast<uint32_t>(width_);
    uint32_t bits = 0;
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
      bool keeps[4];
      hash.keep_next(first + this->column(g), keeps);
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if (keeps[i]) bits |= 1u << (4 * g + i);
    }
    return bits;
  }

 private:
  const int width_;
};

// Sets the elements that are not kept to 0.
template <int kGroups>
__device__ void drop(uint32_t kept, RowPart<kGroups>& x) {
#pragma unroll
  for (int i = 0; i < 4 * kGroups; ++i)
    if (!(kept >> i & 1)) x.x[i / 4][i % 4] = 0.f;
}

template <int kGroups>
__device__ void scale(float factor, RowPart<kGroups>& x) {
#pragma unroll
  for (int i = 0; i < 4 * kGroups; ++i) x.x[i / 4][i % 4] *= factor;
}

// LayerNorm of factor * x with eps is LayerNorm of x with this eps, and the gradients of both with respect to x are
// equal. Dropout before a LayerNorm therefore need not scale the elements that it keeps.
inline __device__ float eps_before_scale(float eps, float factor) { return eps / (factor * factor); }

}  // namespace recgrela::cuda
