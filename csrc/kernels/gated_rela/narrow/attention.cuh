// Attention of queries to keys of their chunk and to a state, by one warp with 16-bit rows; float32 is in
// narrow/attention_float32.cuh.
#pragma once

#include "kernels/gated_rela/narrow/keys.cuh"

namespace recgrela::cuda::narrow {

template <typename E, int kHead, bool kCausal>
class Attention {
 public:
  static constexpr int kTiles = kHead / kTile;
  using Stage = ForwardStage<E, kHead, kCausal>;
  using Values = ValueRows<E, kHead>;

  // Shared memory of the causal form: ones on and below the diagonal, and zeros above it, as operand A.
  // Loading them takes fewer instructions than moving constants to the registers of an instruction.
  struct Memory {
    uint4 lower[32];
  };

  __device__ Attention(const Head<E, kHead>& head, Memory& memory)
      : at_(head.at), keys_(head), mask_(TileMasks(head.at.lane).lower), memory_(memory) {
    if constexpr (kCausal) memory.lower[at_.lane] = make_uint4(kOnes<E> & mask_, kOnes<E>, 0, kOnes<E> & mask_);
    head.load_state(head.state_before(), keys_.sums);
    if constexpr (!kCausal) {
      const float length = static_cast<float>(head.segment.length());
      const float factor = kScaled<E> ? fast_reciprocal(length) : 1.f;
      eps_ = head.p.eps * length * factor;
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
        Acc& z = keys_.sums.features[t];
        if constexpr (kScaled<E>) scale(z, factor);
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          upper_[t][j] = pack2<E>(z.x[j][0], z.x[j][1]);
          const float2 rounded = unpack2<E>(upper_[t][j]);
          rest_[t][j] = pack2<E>(z.x[j][0] - rounded.x, z.x[j][1] - rounded.y);
        }
#pragma unroll
        for (int u = 0; u < kTiles; ++u) {
          if constexpr (kScaled<E>) scale(keys_.sums.products[u][t], factor);
          state_[u][t] = to_right<E>(keys_.sums.products[u][t]);
        }
      }
    }
  }

  // Attention of row tile i of a stage, by value channels, without the factor that `inverse` receives for each row. In
  // the causal form, the lane's rows have `counts` keys and the last row `num_keys`.
  __device__ void attend(Stage& m, int i, int n, const RowPair& counts, float eps, float num_keys, Acc (&out)[kTiles],
                         RowPair& inverse) {
    Operand<E> query[kTiles];
    Acc weights;
    uint32_t zero = 0;
    if constexpr (kCausal) {
      RightSplit<E> key[kTiles];
      Acc plain[kTiles];
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
        const TileAngles angles = load_angles(at_, m.angles[i][t]);
        plain[t] = make_query(m.q[i][t], angles, query[t]);
        key[t] = keys_.make(m.k[i][t], m.q[i][t], angles, n);  // phi(k) replaces q, which all lanes have loaded
      }
      __syncwarp();
      const uint4 ones = memory_.lower[at_.lane];
      const uint32_t lower[4] = {ones.x, ones.y, ones.z, ones.w};
      zero = ones.z;
      float d[2] = {};
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
        const Acc running = keys_.running_features(t, m.q[i][t], lower);
#pragma unroll
        for (int e = 0; e < 8; ++e) d[e / 2 % 2] += plain[t].x[e / 4][e % 4] * running.x[e / 4][e % 4];
      }
#pragma unroll
      for (int h = 0; h < 2; ++h) inverse.x[h] = fast_reciprocal(quad_sum(d[h]) + eps * counts.x[h]);
#pragma unroll
      for (int t = 0; t < kTiles; ++t)
#pragma unroll
        for (int j = 0; j < 2; ++j) multiply(weights.x[j], query[t].r, key[t].r[0][j], t == 0);
    } else {
      float d[4];
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
        const Acc f = make_query(m.q[i][t], load_angles(at_, m.angles[i][t]), query[t]);
        const Operand<E> plain = to_operand<E>(f);
        multiply(d, plain.r, rest_[t], t == 0);
        multiply(d, plain.r, upper_[t], false);
      }
#pragma unroll
      for (int h = 0; h < 2; ++h) inverse.x[h] = fast_reciprocal(d[2 * h] + eps_);
    }

    const float factor = kCausal && kScaled<E> ? fast_reciprocal(num_keys) : 1.f;
#pragma unroll
    for (int u = 0; u < kTiles; ++u)
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
        RightSplit<E> s;
        if constexpr (kCausal) {
          Acc sum = keys_.sums.products[u][t];
          if constexpr (kScaled<E>) scale(sum, factor);
          s = to_right<E>(sum);
        } else {
          s = state_[u][t];
        }
#pragma unroll
        for (int j = 0; j < 2; ++j) multiply(out[u].x[j], query[t].r, s.r[0][j], t == 0);
      }
    if constexpr (kCausal) {
      if constexpr (kScaled<E>) {  // num_keys^2 / denominator * the term of the state + the weights' term, over
                                   // num_keys
        inverse.x[0] *= num_keys, inverse.x[1] *= num_keys;
        scale_rows(weights, inverse);
        inverse.x[0] *= num_keys, inverse.x[1] *= num_keys;
#pragma unroll
        for (int u = 0; u < kTiles; ++u) scale_rows(out[u], inverse);
        inverse.x[0] = inverse.x[1] = factor;
      }
      Operand<E> p = to_operand<E>(weights);
      p.r[0] &= mask_, p.r[2] = zero, p.r[3] &= mask_;
      const unsigned char* const v = m.v + (kMaxHistory + i * kTile) * Values::kRowBytes;
#pragma unroll
      for (int u = 0; u < kTiles; ++u) {
        uint32_t value[4];
        load_matrices<true>(value, v + Values::right(at_.lane) + u * Values::kTileBytes);
        mma16816<E>(out[u].x[0], p.r, {value[0], value[1]});
        mma16816<E>(out[u].x[1], p.r, {value[2], value[3]});
      }
      keys_.add_products(m.k[i][0], v);
    }
  }

  __device__ KeySums<kTiles>& sums() { return keys_.sums; }

 private:
  __device__ Acc make_query(const unsigned char* q, const TileAngles& angles, Operand<E>& rotated) const {
    Acc f = load_tile<E, false>(at_, q);
    apply_phi(f);
    rotated = to_operand<E>(rotate(f, angles));
    return f;
  }
  // d += A B, or d = A B if `first`.
  static __device__ void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], bool first) {
    if (first)
      mma16816<E>(d, a, b, {0.f, 0.f, 0.f, 0.f});
    else
      mma16816<E>(d, a, b);
  }

  const TileLane& at_;
  Keys<E, kHead> keys_;
  const uint32_t mask_;  // of the lane's elements in a matrix on the diagonal
  const Memory& memory_;
  float eps_;
  uint32_t upper_[kTiles][2], rest_[kTiles][2];  // z in every column, as a sum of two numbers
  RightSplit<E> state_[kTiles][kTiles];
};

}  // namespace recgrela::cuda::narrow
