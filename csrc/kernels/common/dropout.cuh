// Dropout without a mask: forward and backward compute the same hash. recgrela/ops/dropout.py defines it.
#pragma once

#include "kernels/common/device.cuh"
#include "kernels/common/params.h"

namespace recgrela::cuda {

// Random numbers of one seed: 16 bits for each index. Constructing it reads the seed.
class DropoutHash {
 public:
  explicit __device__ DropoutHash(const Dropout& p) : threshold_(p.seed ? p.threshold << 16 : 0), scale_(p.scale) {
    if (!p.seed) return;
    uint64_t z = static_cast<uint64_t>(*p.seed) + 0x9e3779b97f4a7c15u;  // splitmix64
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    z ^= z >> 31;
    low_ = static_cast<uint32_t>(z), high_ = static_cast<uint32_t>(z >> 32);
  }

  // The numbers that other threads of the block need instead of the seed.
  explicit __device__ DropoutHash(const uint4& shared)
      : low_(shared.x), high_(shared.y), threshold_(shared.z), scale_(bits_float(shared.w)) {}
  __device__ uint4 shared() const { return make_uint4(low_, high_, threshold_, float_bits(scale_)); }

  // Whether any element may be dropped.
  __device__ bool active() const { return threshold_ != 0; }

  // Whether the element with an index is kept, and the factor of those that are.
  __device__ bool keeps(uint32_t index) const {
    const uint32_t h = mix(index & ~8u);
    return (index & 8 ? h : h ^ (h << 16)) >= threshold_;
  }
  __device__ float scale() const { return scale_; }
  // Factor of the element with an index: 0 or the scale.
  __device__ float factor(uint32_t index) const { return keeps(index) ? scale_ : 0.f; }

  // Whether the elements index .. index + N - 1 are kept, where N divides 8 and the index.
  template <int N>
  __device__ void keep_next(uint32_t index, bool (&kept)[N]) const {
    static_assert(8 % N == 0);
    const uint32_t first = index & ~8u, shift = index & 8 ? 0 : 16;
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const uint32_t h = mix(first + i);
      kept[i] = (h ^ (h >> 16)) << shift >= threshold_;
    }
  }

  // Whether the elements index and index + 8 are kept, where bit 3 of the index is 0: one hash for both.
  __device__ void keep_pair(uint32_t index, bool& first, bool& second) const {
    const uint32_t h = mix(index);
    // The lower halves of the compared numbers change nothing, since that of the threshold is 0.
    first = (h ^ (h << 16)) >= threshold_;
    second = h >= threshold_;
  }

 private:
  // The hash h ^ (h >> 16) before its last step, which the upper half does not need.
  __device__ uint32_t mix(uint32_t index) const {
    uint32_t h = index + low_;
    h = (h ^ (h >> 16)) * 0x7feb352du + high_;
    return (h ^ (h >> 15)) * 0x846ca68bu;
  }

  uint32_t low_ = 0, high_ = 0, threshold_;  // the threshold in the upper half
  float scale_;
};

}  // namespace recgrela::cuda
