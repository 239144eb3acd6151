// The gradients of a chunk's queries, keys and values.
#pragma once

#include "kernels/gated_rela/chunk.cuh"

namespace recgrela::cuda {

// Products of a chunk's tokens with each other and with states. Those with tokens are masked: row i, column j is of
// tokens j <= i in the query's, j >= i in the key's and value's. Columns of the others are own channels.
struct Products {
  Acc tokens, state;
};

// factor products.tokens M^T + products.state
template <typename E>
__device__ Acc apply_products(const Products& products, const Operand<E>& m, float factor) {
  Acc d = products.state;
  add_scaled(d, product(to_operand<E>(products.tokens), m), factor);
  return d;
}

// Finishes the gradients of queries, of own key channels: products are of u with values and with the state of keys;
// `running` is what the denominator has of keys.
template <typename E, int kHead, typename F>
__device__ Acc query_gradient(const Team<E, kHead>& team, Products& products, const Acc& running, const F& q,
                              const F& k, const float* d_denominator, const Angles& angles, float factor) {
  scale(products.state, 1.f / kRange<E, kHead>);
  if (team.p.causal) {
    keep_lower(products.tokens);
    scale(products.tokens, 1.f / kRange<E, kHead>);
    products.state =
        apply_products(products, load_operand<E, true>(k.rotated + team.own(), Team<E, kHead>::kStride), factor);
  }
  Acc d = rotate_back(products.state, angles), f;
  team.load_pairs(f, q.plain);
  const float dz[2] = {d_denominator[team.lane / 4], d_denominator[team.lane / 4 + 8]};
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const int j = i / 4, e = i % 4;
    d.x[j][e] += dz[i / 2 % 2] * running.x[j][e];
    d.x[j][e] *= phi_grad(f.x[j][e]);
  }
  return d;
}

// Those of values, but for the convolution's, of own value channels: products are of keys with queries and with the
// state of queries; `gradients` is the operand u^T.
template <typename E, int kHead>
__device__ Acc value_gradient(const Team<E, kHead>& team, Products& products, const Operand<E>& gradients,
                              float factor) {
  if (!team.p.causal) return products.state;
  keep_upper(products.tokens);
  scale(products.tokens, 1.f / kRange<E, kHead>);
  return apply_products(products, gradients, factor);
}

// Those of keys, of own key channels: products are of values with u and with the state of queries, whose sum of
// queries is `sum`. That is moved on by the chunk.
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
    keep_upper(products.tokens);
    scale(products.tokens, 1.f / kRange<E, kHead>);
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
