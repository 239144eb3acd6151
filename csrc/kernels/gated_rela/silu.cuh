// SiLU in fewer instructions where results are rounded to bfloat16.
#pragma once

#include <type_traits>

#include "kernels/common/activations.cuh"

namespace recgrela::cuda {

// Whether SiLU(x) = h + h tanh(h), where h = x / 2, is exact enough.
template <typename E>
constexpr bool kByTanh = std::is_same_v<E, bf16>;
// Factor of x in the argument of functions below that compute SiLU(x) or its derivative.
template <typename E>
constexpr float kSiluScale = kByTanh<E> ? 0.5f : 1.f;

// SiLU(x), given kSiluScale x.
template <typename E>
__device__ float scaled_silu(float scaled_x) {
  if constexpr (kByTanh<E>)
    return scaled_x * fast_tanh(scaled_x) + scaled_x;
  else
    return scaled_x * sigmoid(scaled_x);
}

}  // namespace recgrela::cuda
