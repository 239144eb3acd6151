// Activation functions in float32 and their derivatives.
#pragma once

#include "kernels/common/device.cuh"

namespace recgrela::cuda {

constexpr float kLog2E = 1.44269504f, kLn2 = 0.693147181f;

inline __device__ float sigmoid(float x) { return fast_reciprocal(1.f + fast_exp2(-kLog2E * x)); }

// Derivative of SiLU at x, from s = sigmoid(x) and y = x s.
inline __device__ float silu_grad(float s, float y) { return s + y * (1.f - s); }

inline __device__ float softplus(float x) { return x > 20.f ? x : log1pf(expf(x)); }

// phi(x) = elu(x) + 1, the feature map of linear attention.
inline __device__ float phi(float x) { return exp2_or_add_one(x, kLog2E * x); }

// Derivative of phi at x, from f = phi(x).
inline __device__ float phi_grad(float f) { return f > 1.f ? 1.f : f; }

}  // namespace recgrela::cuda
