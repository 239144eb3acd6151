// What the operators with dropout share.
#pragma once

#include <cmath>

#include "common.h"

namespace recgrela::ops {

// The 64-bit finalizer of "splitmix64", so that seeds that differ in a bit have nothing in common.
inline uint64_t scatter_seed(uint64_t z) {
  z += 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

// With the index-th of `count` seeds; rate is rounded to a multiple of 2^-32, and where it is 0 no seed is read.
template <typename T>
cpu::Dropout<T> dropout_of(double rate, const OptTensor& seed, int64_t index, int64_t count, int64_t numel) {
  constexpr double kDraws = 4294967296.0;
  STD_TORCH_CHECK(rate >= 0 && rate < 1, "the dropout rate must be at least 0 and below 1, not ", rate);
  cpu::Dropout<T> p;
  if (rate == 0) return p;
  STD_TORCH_CHECK(seed && seed->is_cpu() && seed->scalar_type() == ScalarType::Long && seed->numel() == count,
                  "seed must be int64 on the CPU, of ", count, " elements");
  STD_TORCH_CHECK(static_cast<double>(numel) <= kDraws, "dropout takes up to 2^32 elements, not ", numel,
                  ": split the batch");
  const double dropped = std::min(std::nearbyint(rate * kDraws), kDraws - 1);
  p.seed = scatter_seed(static_cast<uint64_t>(static_cast<const int64_t*>(seed->const_data_ptr())[index]));
  p.threshold = static_cast<uint32_t>(dropped);
  p.scale = static_cast<T>(kDraws / (kDraws - dropped));
  return p;
}

}  // namespace recgrela::ops
