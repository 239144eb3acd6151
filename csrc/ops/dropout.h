// Code that the operators with dropout share.
#pragma once

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

// Makes the parameters of a dropout of `numel` elements with entry `index` of `seed`, which has num_seeds entries. A
// rate of 0 does not read the seed.
template <typename T>
cpu::Dropout<T> make_dropout(double rate, const OptTensor& seed, int64_t index, int64_t num_seeds, const Tensor& like,
                             int64_t numel) {
  const DropoutRate r = dropout_rate(rate, seed, num_seeds, like, numel);
  cpu::Dropout<T> p;
  if (rate == 0) return p;
  p.seed = scatter_seed(static_cast<uint64_t>(static_cast<const int64_t*>(seed->const_data_ptr())[index]));
  p.threshold = r.threshold, p.scale = static_cast<T>(r.scale);
  return p;
}

}  // namespace recgrela::ops
