// An activation followed by dropout, as in mlp.
#pragma once

#include <cstdint>

namespace recgrela::cpu {

enum class Activation { kNone, kRelu, kSilu, kGelu };

template <typename T>
struct Dropout {
  uint64_t seed = 0;
  uint32_t threshold = 0;  // elements with smaller draws of 16 bits are dropped; 0: no dropout
  T scale = 1;             // factor of the elements that are kept
};

}  // namespace recgrela::cpu
