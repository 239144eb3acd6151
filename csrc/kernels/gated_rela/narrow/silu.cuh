// SiLU and its derivative in the backward, and rows of gates.
#pragma once

#include "kernels/gated_rela/narrow/tiles.cuh"
#include "kernels/gated_rela/silu.cuh"

namespace recgrela::cuda::narrow {

// y SiLU(x) and y SiLU'(x), given kSiluScale x.
template <typename E>
__device__ void gate_back(float scaled_x, float y, float& gated, float& d_gate) {
  if constexpr (kByTanh<E>) {
    const float h = scaled_x, t = fast_tanh(h), m = y * t + y;
    gated = m * h;
    d_gate = m * (h * (-0.5f * t + 0.5f) + 0.5f);
  } else {
    const float x = scaled_x, s = sigmoid(x);
    gated = y * (x * s), d_gate = y * silu_grad(s, x * s);
  }
}

// Returns SiLU(x) and replaces its gradient by that of the scaled x.
template <typename E>
__device__ float silu_back(float scaled_x, float& gradient) {
  if constexpr (kByTanh<E>) {
    const float h = scaled_x, t = fast_tanh(h);
    gradient = (gradient * t + gradient) * (h * (1.f - t) + 1.f);
    return h * t + h;
  } else {
    const float s = sigmoid(scaled_x), y = scaled_x * s;
    gradient *= silu_grad(s, y);
    return y;
  }
}

// Loads rows times kSiluScale, as load_rows.
template <typename E>
__device__ Acc load_scaled_rows(const TileLane& at, const unsigned char* rows) {
  if constexpr (kByTanh<E>) {
    uint32_t r[4];
    load_matrices<false>(r, rows + at.straight);
#pragma unroll
    for (int i = 0; i < 4; ++i) r[i] = halve2<E>(r[i]);
    return unpack_tile<E>(r);
  } else {
    return load_rows<E>(at, rows);
  }
}

}  // namespace recgrela::cuda::narrow
