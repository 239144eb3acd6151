// The gradients of a chunk's queries, keys and values.
#pragma once

#include "kernels/rela_chunk.cuh"

namespace recgrela::cuda {

// Products of a chunk's tokens with each other and with states. Those with tokens are masked: row i, column j is of
// tokens j <= i in the query's, j >= i in the key's and value's. Columns of the others are own channels.
struct Products {
  Acc tokens, state;
};

// Finishes the gradients of queries, of own key channels: products are of u with values and with the state of keys,
// whose sum of keys, over n, is `sum`.
template <typename E, int kHead, typename F>
__device__ Acc query_gradient(const Team<E, kHead>& team, Products& products, const RowVector& sum, const F& q,
                              const F& k, const RowPair& d_denominator, const Angles& angles, float factor) {
  using T = Team<E, kHead>;
  Acc running;  // sum of phi(k)
  if (team.p.causal) {
    Acc lower, part;
    keep_lower(products.tokens);
    mma(part, to_operand<E>(products.tokens), load_operand<E, true>(k.rotated_tile + team.own(), T::kStride));
    add_scaled(products.state, part, factor);
#pragma unroll
    for (int i = 0; i < 8; ++i) lower.x[i / 4][i % 4] = 1.f;
    keep_lower(lower);
    mma<true>(running, to_operand<E>(lower), load_operand<E, true>(k.plain_tile + team.own(), T::kStride));
  }
  Acc d = rotate_back(products.state, angles);
  const Acc f = q.plain(team);
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const int j = i / 4, e = i % 4;
    d.x[j][e] += d_denominator.x[i / 2 % 2] * (sum.x[2 * j + e % 2] + factor * running.x[j][e]);
    d.x[j][e] *= phi_grad(f.x[j][e]);
  }
  return d;
}

// factor products.tokens M^T + products.state
template <typename E, int kHead>
__device__ Acc apply_products(Products& products, const Operand<E>& m, float factor, bool causal) {
  if (causal) {
    Acc part;
    keep_upper(products.tokens);
    mma(part, to_operand<E>(products.tokens, 1.f / kHead), m);
    add_scaled(products.state, part, factor * kHead);
  }
  return products.state;
}

// Those of keys, of own key channels: products are of values with u and with the state of queries, whose sum of
// queries is `sum`.
template <typename E, int kHead, typename F>
__device__ Acc key_gradient(const Team<E, kHead>& team, Products& products, const RowVector& sum, const F& q,
                            const F& k, const float* d_denominator, const Angles& angles, float factor) {
  using T = Team<E, kHead>;
  const bool causal = team.p.causal;
  Acc d_phi;
  if (causal) {
    const RowVector row = team.row_vector(d_denominator);
    Acc weights;
#pragma unroll
    for (int i = 0; i < 8; ++i) weights.x[i / 4][i % 4] = row.x[i / 4 * 2 + i % 2];
    keep_upper(weights);
    mma(d_phi, to_operand<E>(weights), load_operand<E, true>(q.plain_tile + team.own(), T::kStride));
  }
  const Operand<E> queries = load_operand<E, true>(q.rotated_tile + team.own(), T::kStride);
  Acc d = rotate_back(apply_products<E, kHead>(products, queries, factor, causal), angles);
  const Acc f = k.plain(team);
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const int j = i / 4, e = i % 4;
    d.x[j][e] += sum.x[2 * j + e % 2] + factor * d_phi.x[j][e];
    d.x[j][e] *= phi_grad(f.x[j][e]);
  }
  return d;
}

}  // namespace recgrela::cuda
