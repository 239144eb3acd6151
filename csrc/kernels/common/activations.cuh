// Activation functions in float32 and their derivatives.
#pragma once

#include "kernels/common/device.cuh"

namespace recgrela::cuda {

constexpr float kLog2E = 1.44269504f, kLn2 = 0.693147181f;

inline __device__ float sigmoid(float x) { return fast_reciprocal(1.f + fast_exp2(-kLog2E * x)); }

// Derivative of SiLU at x, from s = sigmoid(x) and y = x s.
inline __device__ float silu_grad(float s, float y) { return s + y * (1.f - s); }

// log(1 + exp(x)) = max(x, 0) + log(1 + e) with e = exp(-|x|), as exact as log1pf(expf(x)): log(1 + e) / e is a
// polynomial with a relative error of 3e-8, and the first product corrects 2^t for the rounding of t.
inline __device__ float softplus(float x) {
  const float size = min(fabsf(x), 128.f);  // exp(-128) is 0; -infinity must not become NaN
  const float t = -kLog2E * size, power = fast_exp2(t), e = power + power * fmaf(-kLn2, t, -size);
  float sum = 0.00523269409f;
  for (float c : {-0.0295052398f, 0.0782259554f, -0.136632457f, 0.191060066f, -0.24842982f, 0.333190978f, -0.499994934f,
                  0.99999994f})
    sum = sum * e + c;
  return e * sum + max_or_nan(x, 0.f);
}

// phi(x) = elu(x) + 1, the feature map of linear attention.
inline __device__ float phi(float x) { return exp2_or_add_one(x, kLog2E * x); }

// Derivative of phi at x, from f = phi(x).
inline __device__ float phi_grad(float f) { return f > 1.f ? 1.f : f; }

}  // namespace recgrela::cuda
