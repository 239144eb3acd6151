// The weights of a group of hidden columns in shared memory, as parts of operands.
#pragma once

#include "kernels/mlp/plan.cuh"

namespace recgrela::cuda {

// w1 and w2 in panels of kPanel hidden columns, so that operands of a panel are at constant distances: for each panel
// the parts of w1 [kPanel, kWidth], then those of w2 [kWidth, kPanel]. b1 follows the panels.
template <typename E, int kTiles>
class MlpWeights {
  using K = MlpKernels<E, kTiles>;
  using P = Part<E>;

 public:
  // Adjacent columns of a panel.
  struct Columns {
    const P *w1, *w2;

    // Operands A: M[hidden][in] of w1 and M[hidden][out] of the transposed w2.
    __device__ Split<E> left1(int tile) const { return load_split<E, false>(w1 + tile * kTile, K::kStride, K::kPart1); }
    __device__ Split<E> left2(int tile) const {
      return load_split<E, true>(w2 + tile * kTile * K::kStride2, K::kStride2, K::kPart2);
    }
    // Operands B: M[hidden][in] of w1 and M[out][hidden] of w2, or their transposes. `offset` is below kPanel.
    template <bool kTranspose = false>
    __device__ RightSplit<E> right1(int tile, int offset = 0) const {
      return load_right<E, kTranspose>(w1 + offset * K::kStride + tile * kTile, K::kStride, K::kPart1);
    }
    template <bool kTranspose = false>
    __device__ RightSplit<E> right2(int tile, int offset = 0) const {
      return load_right<E, kTranspose>(w2 + tile * kTile * K::kStride2 + offset, K::kStride2, K::kPart2);
    }
  };

  // Takes memory for `columns` hidden columns from `shared`.
  __device__ MlpWeights(int columns, unsigned char*& shared)
      : panels_(K::panels(columns)), memory_(reinterpret_cast<P*>(shared)) {
    shared += K::weight_bytes(columns);
  }

  __device__ float* b1() const { return reinterpret_cast<float*>(memory_ + panels_ * K::kPanelSize); }

  __device__ Columns at(int column) const {
    const P* const panel = memory_ + column / K::kPanel * K::kPanelSize;
    const int offset = column % K::kPanel;
    return {panel + offset * K::kStride, panel + kParts<E> * K::kPart1 + offset};
  }

  // Copies the weights of the hidden columns from `first` on, with zeros after the last, and w2 times scale2. The
  // weight and bias of a norm before the network become part of w1 and b1. All threads of the block call it; a barrier
  // must follow.
  template <typename Plan>
  __device__ void stage(const Plan& p, int first, float scale2) const {
    constexpr int kVectors = K::kWidth / 4, kPanelVectors = K::kPanel / 4;
    const int columns = panels_ * K::kPanel;
#pragma unroll(kHasNorm<Plan> ? 1 : 2)
    for (int i = threadIdx.x; i < columns * kVectors; i += blockDim.x) {
      const int f = i / kVectors, c = i % kVectors * 4;
      float w[4] = {};
      if (first + f < p.hidden && c < p.in) load4(p.w1 + int64_t{first + f} * p.in + c, w);
      if constexpr (kHasNorm<Plan>) {
        float weight[4] = {}, bias[4] = {}, sum = 0.f;
        if (c < p.in) load4(p.norm_weight + c, weight), load4(p.norm_bias + c, bias);
#pragma unroll
        for (int j = 0; j < 4; ++j) sum += w[j] * bias[j], w[j] *= weight[j];
#pragma unroll
        for (int mask = kVectors / 2; mask > 0; mask /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, mask);
        if (c == 0) b1()[f] = sum + (first + f < p.hidden ? __ldg(p.b1 + first + f) : 0.f);
      }
      store_split4<E>(memory_ + f / K::kPanel * K::kPanelSize + f % K::kPanel * K::kStride + c, K::kPart1, w);
    }
    const bool aligned = p.hidden % 4 == 0;
    const float* const w2 = p.w2 + first;
#pragma unroll 2
    for (int i = threadIdx.x; i < columns * kVectors; i += blockDim.x) {
      const int panel = i / (K::kWidth * kPanelVectors), o = i / kPanelVectors % K::kWidth;
      const int c = i % kPanelVectors * 4, f = panel * K::kPanel + c, left = o < p.out ? p.hidden - (first + f) : 0;
      float w[4] = {};
      if (aligned && left > 0) {
        load4(w2 + int64_t{o} * p.hidden + f, w);
      } else {
#pragma unroll
        for (int j = 0; j < 4; ++j)
          if (j < left) w[j] = __ldg(w2 + int64_t{o} * p.hidden + f + j);
      }
#pragma unroll
      for (int j = 0; j < 4; ++j) w[j] *= scale2;
      P* const to = memory_ + panel * K::kPanelSize + kParts<E> * K::kPart1 + o * K::kStride2 + c;
      store_split4<E>(to, K::kPart2, w);
    }
    if constexpr (!kHasNorm<Plan>) {
      for (int f = threadIdx.x; f < columns; f += blockDim.x)
        b1()[f] = first + f < p.hidden ? __ldg(p.b1 + first + f) : 0.f;
    }
  }

 private:
  static __device__ void load4(const float* from, float (&x)[4]) {
    const float4 v = __ldg(reinterpret_cast<const float4*>(from));
    x[0] = v.x, x[1] = v.y, x[2] = v.z, x[3] = v.w;
  }

  const int panels_;
  P* const memory_;
};

}  // namespace recgrela::cuda
