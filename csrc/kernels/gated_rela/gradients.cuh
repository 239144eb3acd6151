// Gradients of a chunk's queries, keys and values.
#pragma once

#include "kernels/gated_rela/chunk.cuh"

namespace recgrela::cuda {

// Products that make up a gradient: `rows` of the rows of a chunk with each other, `state` of rows with a state, by own
// channels. Products between rows i and j are masked to j <= i in the gradient of queries, and to j >= i in those of
// keys and values.
struct Products {
  Acc rows, state;
};

// factor * products.rows M^T + products.state
template <typename E>
__device__ Acc apply_products(const Products& products, const Operand<E>& m, float factor) {
  Acc d = products.state;
  add_scaled(d, product(to_operand<E>(products.rows), m), factor);
  return d;
}

// Gradient of queries, by own key channels.
//
// Args:
//   products  u with values, and u with the state of keys
//   running   sums of phi(k) by which queries are multiplied to give the denominators
template <typename E, int kHead, typename F>
__device__ Acc query_gradient(const Team<E, kHead>& team, Products& products, const Acc& running, const F& q,
                              const F& k, const float* d_denominator, const Angles& angles, float factor) {
  scale(products.state, 1.f / kRange<E, kHead>);
  if (team.p.causal) {
    keep_lower(products.rows);
    scale(products.rows, 1.f / kRange<E, kHead>);
    products.state =
        apply_products(products, load_operand<E, true>(k.rotated + team.own(), Team<E, kHead>::kStride), factor);
  }
  Acc d = rotate_back(products.state, angles), f;
  team.load_pairs(f, q.plain);
  const float d_z[2] = {d_denominator[team.lane / 4], d_denominator[team.lane / 4 + 8]};
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const int j = i / 4, e = i % 4;
    d.x[j][e] += d_z[i / 2 % 2] * running.x[j][e];
    d.x[j][e] *= phi_grad(f.x[j][e]);
  }
  return d;
}

// Gradient of values through the attention, by own value channels.
//
// Args:
//   products   keys with queries, and keys with the state of queries
//   gradients  operand u^T
template <typename E, int kHead>
__device__ Acc value_gradient(const Team<E, kHead>& team, Products& products, const Operand<E>& gradients,
                              float factor) {
  if (!team.p.causal) return products.state;
  keep_upper(products.rows);
  scale(products.rows, 1.f / kRange<E, kHead>);
  return apply_products(products, gradients, factor);
}

// Gradient of keys, by own key channels.
//
// Args:
//   products  values with u, and values with the state of queries
//   sum       the sum over queries in that state; the function adds the chunk to it
template <typename E, int kHead, typename F>
__device__ Acc key_gradient(const Team<E, kHead>& team, Products& products, RowVector& sum, const F& q, const F& k,
                            const float* d_denominator, const Angles& angles, float factor) {
  constexpr int kStride = Team<E, kHead>::kStride;
  Acc d_phi;
  if (team.p.causal) {
    const RowVector row = team.row_vector(d_denominator);
    Acc weights;
#pragma unroll
    for (int i = 0; i < 8; ++i) weights.x[i / 4][i % 4] = row.x[i / 4 * 2 + i % 2];
    keep_upper(weights);
    d_phi = product(to_operand<E>(weights), load_operand<E, true>(q.plain + team.own(), kStride));
    keep_upper(products.rows);
    scale(products.rows, 1.f / kRange<E, kHead>);
    products.state = apply_products(products, load_operand<E, true>(q.rotated + team.own(), kStride), factor);
  }
  Acc d = rotate_back(products.state, angles), f;
  team.load_pairs(f, k.plain);
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const int j = i / 4, e = i % 4;
    d.x[j][e] += sum.x[2 * j + e % 2] + factor * d_phi.x[j][e];
    d.x[j][e] *= phi_grad(f.x[j][e]);
  }
  if (team.p.causal) add_scaled(sum, row_of<0>(d_phi), factor);
  return d;
}

}  // namespace recgrela::cuda
