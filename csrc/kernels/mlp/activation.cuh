// Activations of the hidden layer, with derivatives.
#pragma once

#include <type_traits>

#include "kernels/common/activations.cuh"
#include "kernels/common/dropout.cuh"
#include "kernels/common/tile.cuh"
#include "kernels/mlp/params.h"

namespace recgrela::cuda {

// Distribution function of the normal distribution at -a, for a >= 0, as a power of two whose exponent is a polynomial.
// The error of a times the result is below 5e-8 for float32 rows and 7e-7 for 16-bit rows.
template <typename E>
__device__ float normal_tail(float a) {
  if constexpr (sizeof(E) == 4) {
    float e = -2.09642405e-6f;
    e = e * a + 3.06608236e-5f;
    e = e * a - 1.45485687e-4f;
    e = e * a - 2.33151663e-4f;
    e = e * a + 7.18584841e-3f;
    e = e * a - 5.2578242e-2f;
    e = e * a - 0.459182036f;
    e = e * a - 1.15110829f;
    return fast_exp2(e * a - 0.999999934f);
  } else {
    float e = -4.92504841e-4f;
    e = e * a + 7.22960437e-3f;
    e = e * a - 5.22207984e-2f;
    e = e * a - 0.459526396f;
    e = e * a - 1.15101805f;
    return fast_exp2(e * a - 1.00000329f);
  }
}

// Returns act(x); if kSlope, also sets slope = act'(x).
template <typename E, MlpActivation kActivation, bool kSlope>
__device__ float activate(float x, float& slope) {
  if constexpr (kActivation == MlpActivation::kRelu) {
    if constexpr (kSlope) slope = x > 0.f ? 1.f : 0.f;
    return x < 0.f ? 0.f : x;
  } else if constexpr (kActivation == MlpActivation::kSilu) {
    const float s = sigmoid(x), y = x * s;
    if constexpr (kSlope) slope = silu_grad(s, y);
    return y;
  } else if constexpr (kActivation == MlpActivation::kGelu) {
    const float a = fabsf(x), tail = normal_tail<E>(a);
    if constexpr (kSlope) {
      // cdf + x density; the density is a power of two as well
      constexpr float kScale = 0.849321800f, kLogDensity = -1.32574806f;  // sqrt(log2(e) / 2), log2(1 / sqrt(2 pi))
      const float s = kScale * x, cdf = x > 0.f ? 1.f - tail : tail;
      slope = x * fast_exp2(kLogDensity - s * s) + cdf;
      return x * cdf;
    }
    return max(x, 0.f) - a * tail;
  } else {
    if constexpr (kSlope) slope = 1.f;
    return x;
  }
}

// Calls f(the activation as a constant). A switch would take registers for its table.
template <typename F>
__device__ void with_activation(MlpActivation activation, F f) {
  if (activation == MlpActivation::kGelu) {
    f(std::integral_constant<MlpActivation, MlpActivation::kGelu>{});
  } else if (activation == MlpActivation::kSilu) {
    f(std::integral_constant<MlpActivation, MlpActivation::kSilu>{});
  } else if (activation == MlpActivation::kRelu) {
    f(std::integral_constant<MlpActivation, MlpActivation::kRelu>{});
  } else {
    f(std::integral_constant<MlpActivation, MlpActivation::kNone>{});
  }
}

// h = act(h)
template <typename E>
__device__ void activate_tile(MlpActivation activation, Acc& h) {
  with_activation(activation, [&](auto constant) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      float unused;
      h.x[i / 4][i % 4] = activate<E, decltype(constant)::value, false>(h.x[i / 4][i % 4], unused);
    }
  });
}

// d_h *= act'(h); h = act(h)
template <typename E>
__device__ void activate_tile(MlpActivation activation, Acc& h, Acc& d_h) {
  with_activation(activation, [&](auto constant) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      float slope;
      h.x[i / 4][i % 4] = activate<E, decltype(constant)::value, true>(h.x[i / 4][i % 4], slope);
      d_h.x[i / 4][i % 4] *= slope;
    }
  });
}

// Sets dropped elements to zero in the lane's elements of tiles of 16 rows by 16 columns, or of their transposes,
// without scaling the others. `index` is the index of the lane's first element; rows are `stride` indices apart, a
// multiple of 16.
template <bool kTransposed, typename... Tiles>
__device__ void drop_tile(const DropoutHash& drop, uint32_t index, uint32_t stride, Tiles&... tiles) {
  if (!drop.active()) return;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    // the columns c and c + 8 of a row, which a lane holds as elements j and j + 4, or j and j + 2 if transposed
    const int j = kTransposed ? i / 2 * 4 + i % 2 : i, k = kTransposed ? j + 2 : j + 4;
    bool first, second;
    drop.keep_pair(index + (kTransposed ? (i / 2 * 8 + i % 2) * stride : i / 2 * 8 * stride + i % 2), first, second);
    if (!first) ((tiles.x[j / 4][j % 4] = 0.f), ...);
    if (!second) ((tiles.x[k / 4][k % 4] = 0.f), ...);
  }
}

}  // namespace recgrela::cuda
