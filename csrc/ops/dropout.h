// Code that the operators with dropout share.
#pragma once

#include <cmath>

#include "cpu.h"
#include "cpu/activation.h"

namespace recgrela::ops {

// The 64-bit finalizer of "splitmix64". Seeds that differ in one bit become unrelated.
inline uint64_t scatter_seed(uint64_t z) {
  z += 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

// Makes the parameters of a dropout with entry `index` of `seed`, which has num_seeds entries. The rate is rounded to a
// multiple of 2^-32. A rate of 0 does not read the seed.
template <typename T>
cpu::Dropout<T> make_dropout(double rate, const OptTensor& seed, int64_t index, int64_t num_seeds, int64_t numel) {
  constexpr double kDraws = 4294967296.0;
  STD_TORCH_CHECK(rate >= 0 && rate < 1, "the dropout rate must be at least 0 and below 1, not ", rate);
  cpu::Dropout<T> p;
  if (rate == 0) return p;
  STD_TORCH_CHECK(seed && seed->is_cpu() && seed->scalar_type() == ScalarType::Long && seed->numel() == num_seeds,
                  "seed must be int64 on the CPU and have ", num_seeds, " elements");
  STD_TORCH_CHECK(static_cast<double>(numel) <= kDraws, "dropout takes up to 2^32 elements, not ", numel,
                  "; split the batch");
  const double dropped = std::min(std::nearbyint(rate * kDraws), kDraws - 1);
  p.seed = scatter_seed(static_cast<uint64_t>(static_cast<const int64_t*>(seed->const_data_ptr())[index]));
  p.threshold = static_cast<uint32_t>(dropped);
  p.scale = static_cast<T>(kDraws / (kDraws - dropped));
  return p;
}

}  // namespace recgrela::ops
