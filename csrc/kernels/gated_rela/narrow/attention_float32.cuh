// Attention of queries to keys of their chunk and to a state, by one warp with float32 rows, in products of pairs of
// TF32 numbers (common/tile.cuh).
#pragma once

#include "kernels/gated_rela/narrow/attention.cuh"
#include "kernels/gated_rela/narrow/quads.cuh"

namespace recgrela::cuda::narrow {

// Keys of a chunk and sums over the keys before it. Ordinary additions add the chunk to the sums.
template <int kHead>
class Keys<float, kHead> {
 public:
  static constexpr int kTiles = kHead / kTile;
  KeySums<kTiles> sums;

  explicit __device__ Keys(const Head<float, kHead>& head)
      : at_(head.at), transposed_(keep(transposed_quads(head.at.lane))) {}

  // Stores phi(k) of a tile of keys, of which n rows are valid, to `plain`, and R phi(k) in their place. Both are
  // readable after a barrier. Returns R phi(k).
  __device__ Acc make(unsigned char* k, unsigned char* plain, const Acc& angles, int n) const {
    Acc f = load_quads(k + at_.straight);
    apply_phi(f);
    if (n < kTile) keep_rows(f, at_.lane, n);
    const Acc rotated = rotate_quads(f, angles);
    store_quads(plain + at_.straight, f);
    store_quads(k + at_.straight, rotated);
    return rotated;
  }
  // Adds phi(k) of tile t to its sums, in the lane's rows, and stores R phi(k) in place of the keys.
  __device__ void start_sum(int t, unsigned char* k, unsigned char*, const Acc& angles, int n) {
    Acc f = load_quads(k + at_.straight);
    apply_phi(f);
    if (n < kTile) keep_rows(f, at_.lane, n);
    add_scaled(sums.features[t], f, 1.f);
    store_quads(k + at_.straight, rotate_quads(f, angles));
  }
  __device__ void finish_sum(int, const unsigned char*) {}
  // Adds up the lanes' rows after the last chunk.
  __device__ void complete() {
#pragma unroll
    for (int t = 0; t < kTiles; ++t) sum_rows(sums.features[t]);
  }
  // Adds phi(k) of tile t to its sums and returns the sums up to each row.
  __device__ Acc running_features(int t, const unsigned char* plain, const LowerOnes& lower) {
    Acc& sum = sums.features[t];
    Acc running = multiply_lower(lower, at_.lane, load_transposed(plain + transposed_));
    add_scaled(running, sum, 1.f);
    const RowVector last = row_of<kTile - 1>(running);
#pragma unroll
    for (int i = 0; i < 8; ++i) sum.x[i / 4][i % 4] = last.x[i / 4 * 2 + i % 2];
    return running;
  }
  __device__ void add_products(const unsigned char* k, const unsigned char* v) {
    Operand<float> values[kTiles];
    load_values(v, values);
    add_products(k, values);
  }
  // v^T
  __device__ void load_values(const unsigned char* v, Operand<float> (&values)[kTiles]) const {
#pragma unroll
    for (int u = 0; u < kTiles; ++u)
      values[u] = load_transposed(v + u * ValueRows<float, kHead>::kTileBytes + transposed_);
  }
  // Adds R phi(k) (x) v, given R phi(k) and v^T.
  __device__ void add_products(const unsigned char* k, const Operand<float> (&values)[kTiles]) {
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      limit_overlap<float, (kTiles > 1)>();
      const Operand<float> key = load_transposed(k + t * kRowsBytes<float> + transposed_);
#pragma unroll
      for (int u = 0; u < kTiles; ++u) add_scaled(sums.products[u][t], multiply_quads(values[u], key), 1.f);
    }
  }

 private:
  const TileLane& at_;
  const int transposed_;
};

template <int kHead, bool kCausal>
class Attention<float, kHead, kCausal> {
 public:
  static constexpr int kTiles = kHead / kTile;
  using Stage = ForwardStage<float, kHead, kCausal>;
  using Values = ValueRows<float, kHead>;

  struct Memory {
    LowerOnes lower;
  };

  __device__ Attention(const Head<float, kHead>& head, Memory& memory)
      : at_(head.at), keys_(head), in_head_(head.in_head(LaneRows<float>::column(head.at.lane))), memory_(memory) {
    if constexpr (kCausal) memory.lower.store(at_.lane);
    head.load_state(head.state_before(), keys_.sums);
    if constexpr (!kCausal) {
      eps_ = head.p.eps * static_cast<float>(head.segment.length());
#pragma unroll
      for (int i = 0; i < kTiles * kTiles; ++i)
        state_[i / kTiles][i % kTiles] = to_operand<float>(keys_.sums.products[i / kTiles][i % kTiles]);
    }
  }

  // The same as at 16 bits.
  __device__ void attend(Stage& m, int i, int n, const RowPair& counts, float eps, float, Acc (&out)[kTiles],
                         RowPair& inverse) {
    Operand<float> query[kTiles];
    Acc plain[kTiles], weights;
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      limit_overlap<float, (kTiles > 1)>();
      const Acc angles = load_quads(m.angles[i][t] + at_.straight);
      plain[t] = load_quads(m.q[i][t] + at_.straight);
      apply_phi(plain[t]);
      query[t] = to_operand<float>(rotate_quads(plain[t], angles));
      if constexpr (kCausal) {  // phi(k) replaces q, of which each lane has read what it overwrites
        const Acc key = keys_.make(m.k[i][t], m.q[i][t], angles, n);
        const Acc product = multiply_quads(query[t], to_operand<float>(key));
        if (t == 0)
          weights = product;
        else
          add_scaled(weights, product, 1.f);
      }
    }
    if constexpr (kCausal) __syncwarp();
    float d[2] = {};
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      const Acc z = kCausal ? keys_.running_features(t, m.q[i][t], memory_.lower) : keys_.sums.features[t];
#pragma unroll
      for (int e = 0; e < 8; ++e) d[e / 2 % 2] += plain[t].x[e / 4][e % 4] * z.x[e / 4][e % 4];
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float sum = quad_sum(in_head_ ? d[h] : 0.f);
      inverse.x[h] = fast_reciprocal(sum + (kCausal ? eps * counts.x[h] : eps_));
    }
#pragma unroll
    for (int u = 0; u < kTiles; ++u)
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
        limit_overlap<float, (kTiles > 1)>();
        const Acc product =
            multiply_quads(query[t], kCausal ? to_operand<float>(keys_.sums.products[u][t]) : state_[u][t]);
        if (t == 0)
          out[u] = product;
        else
          add_scaled(out[u], product, 1.f);
      }
    if constexpr (kCausal) {
      keep_lower(weights);
      const Operand<float> p = to_operand<float>(weights);
      Operand<float> values[kTiles];
      keys_.load_values(m.v + (kMaxHistory + i * kTile) * Values::kRowBytes, values);
#pragma unroll
      for (int u = 0; u < kTiles; ++u) add_scaled(out[u], multiply_quads_in_place(p, values[u]), 1.f);
      keys_.add_products(m.k[i][0], values);
    }
  }

  __device__ KeySums<kTiles>& sums() { return keys_.sums; }

 private:
  const TileLane& at_;
  Keys<float, kHead> keys_;
  const bool in_head_;  // the lane's channels
  const Memory& memory_;
  float eps_;
  Operand<float> state_[kTiles][kTiles];
};

}  // namespace recgrela::cuda::narrow
