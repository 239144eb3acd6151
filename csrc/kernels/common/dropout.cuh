// Dropout without a mask: forward and backward compute the same hash. recgrela/ops/dropout.py defines it.
#pragma once

#include "kernels/common/device.cuh"
#include "kernels/common/params.h"

namespace recgrela::cuda {

// Random numbers of one seed. Constructing it reads the seed.
class DropoutHash {
 public:
  explicit __device__ DropoutHash(const Dropout& p) : threshold_(p.seed ? p.threshold : 0), scale_(p.scale) {
    if (!p.seed) return;
    uint64_t z = static_cast<uint64_t>(*p.seed) + 0x9e3779b97f4a7c15u;  // splitmix64
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    z ^= z >> 31;
    low_ = static_cast<uint32_t>(z), high_ = static_cast<uint32_t>(z >> 32);
  }

  // Whether any element may be dropped.
  __device__ bool active() const { return threshold_ != 0; }

  // Whether the element with an index is kept, and the factor of those that are.
  __device__ bool keeps(uint32_t index) const {
    uint32_t h = index + low_;
    h = (h ^ (h >> 16)) * 0x7feb352du + high_;
    h = (h ^ (h >> 15)) * 0x846ca68bu;
    return (h ^ (h >> 16)) >= threshold_;
  }
  __device__ float scale() const { return scale_; }
  // Factor of the element with an index: 0 or the scale.
  __device__ float factor(uint32_t index) const { return keeps(index) ? scale_ : 0.f; }

 private:
  uint32_t low_ = 0, high_ = 0, threshold_;
  float scale_;
};

}  // namespace recgrela::cuda
