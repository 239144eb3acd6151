// The definition of dropout by hash, as in recgrela/ops/dropout.py.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/common/params.h"

namespace recgrela::tests {

class DropoutReference {
 public:
  DropoutReference(double rate, int64_t seed) : threshold_(static_cast<uint32_t>(std::nearbyint(rate * 0x1p16))) {
    uint64_t z = static_cast<uint64_t>(seed) + 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    scattered_ = z ^ (z >> 31);
  }

  double scale() const { return 0x1p16 / (0x1p16 - threshold_); }
  // Factor of the element with an index: 0 or the scale.
  double factor(int64_t index) const {
    uint32_t h = static_cast<uint32_t>(index & ~8) + static_cast<uint32_t>(scattered_);
    h = (h ^ (h >> 16)) * 0x7feb352du + static_cast<uint32_t>(scattered_ >> 32);
    h = (h ^ (h >> 15)) * 0x846ca68bu;
    h ^= h >> 16;
    return (index & 8 ? h >> 16 : h & 0xffff) < threshold_ ? 0 : scale();
  }
  // Parameters of the kernels, which read the seed from their memory.
  cuda::Dropout params(const int64_t* seed) const { return {seed, threshold_, static_cast<float>(scale())}; }

 private:
  uint32_t threshold_;
  uint64_t scattered_;
};

}  // namespace recgrela::tests
