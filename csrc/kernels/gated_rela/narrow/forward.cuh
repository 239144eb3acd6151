// Forward of gated_rela for heads of up to 32 channels: one warp processes one head of a segment, given the state
// before it (causal) or of its whole sequence (bidirectional).
//
// Each chunk of 16 rows computes
//   numerator   = (R phi(q) (R phi(k))^T, j <= i) v + R phi(q) S
//   denominator = phi(q) (z + sum of phi(k_j), j <= i)
// The terms with k exist only in the causal form, which then adds the chunk to S and z. All rows of a chunk take part
// in its products: a value that is not finite also reaches the rows before it in its chunk, and at 16 bits the channels
// beside it in the convolution.
#pragma once

#include "kernels/gated_rela/history.cuh"
#include "kernels/gated_rela/narrow/attention.cuh"
#include "kernels/gated_rela/narrow/attention_float32.cuh"
#include "kernels/gated_rela/narrow/values.cuh"

namespace recgrela::cuda::narrow {

// Memory of a warp.
template <typename E, int kHead, bool kCausal>
struct ForwardMemory {
  RelaSegment segment;
  typename ForwardConvolution<E, kHead, kCausal>::Memory conv_weights[kHead / kTile];
  ForwardStage<E, kHead, kCausal> stages[2];
};

// Memory of a block. Its warps store the same numbers for their attention.
template <typename E, int kHead, bool kCausal>
struct ForwardBlock {
  typename Attention<E, kHead, kCausal>::Memory attention;
  ForwardMemory<E, kHead, kCausal> warps[Head<E, kHead>::kWarps];
};

// kSiluScale times a tile of g.
template <typename E>
__device__ Acc load_gates(const TileLane& at, const unsigned char* rows) {
  if constexpr (sizeof(E) == 4)
    return load_quads(rows + at.straight);
  else
    return load_scaled_rows<E>(at, rows);
}

// This lane's vectors of y: one of a row of 16 bits, or two of float32 rows, 8 rows apart.
template <typename E, int kHead>
class LaneOutputs {
 public:
  static constexpr int kTiles = kHead / kTile;

  explicit __device__ LaneOutputs(const Head<E, kHead>& head)
      : lane_(head.at.lane), stride_(static_cast<int>(head.p.y.stride)) {
    const int row = LaneRows<E>::row(lane_), column = LaneRows<E>::column(lane_);
    next_ =
        static_cast<E*>(head.p.y.data) + (head.segment.begin + row) * head.p.y.stride + head.first_channel() + column;
    row_ = head.in_head(column) ? row : kOutside;
  }

  // Stores the rows below n of a chunk and moves to the next one. `scratch` are tiles of q, which
  // all lanes have loaded.
  __device__ void store(unsigned char* scratch, int n, const Acc (&a)[kTiles]) {
    if constexpr (sizeof(E) == 4) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        if (row_ + 8 * h < n) {
#pragma unroll
          for (int t = 0; t < kTiles; ++t) *reinterpret_cast<float4*>(next_ + t * kTile) = quad_of(a[t], h);
        }
        next_ += 8 * stride_;
      }
      __syncwarp();  // the next tile or step overwrites what lanes have read
    } else {
#pragma unroll
      for (int t = 0; t < kTiles; ++t) store_matrices(scratch + t * kPartBytes, lane_, to_operand<E>(a[t]).r);
      __syncwarp();
      if (row_ < n) {
#pragma unroll
        for (int t = 0; t < kTiles; ++t)
          *reinterpret_cast<uint4*>(next_ + t * kTile) =
              *reinterpret_cast<const uint4*>(scratch + t * kPartBytes + lane_ * 16);
      }
      next_ += kTile * stride_;
    }
  }

 private:
  const int lane_, stride_;
  int row_;  // beyond all rows in the padding of a head
  E* next_;
};

template <typename E, int kHead, bool kCausal>
__global__ void __launch_bounds__(64, kForwardBlocks<E, kHead, kCausal>) rela_forward_kernel(const RelaPlan p) {
  constexpr int kTiles = kHead / kTile;
  using Stage = ForwardStage<E, kHead, kCausal>;
  using Values = ValueRows<E, kHead>;
  auto& block = *reinterpret_cast<ForwardBlock<E, kHead, kCausal>*>(dynamic_shared());
  auto& memory = block.warps[threadIdx.x / 32];
  Head<E, kHead> head(p, memory.segment);
  check_sequences(p.sequences, p.initial_position, p.rotary ? p.rotary_positions : 0);
  if (!head.find_segment(memory.segment)) return;
  const RelaSegment& segment = memory.segment;
  const int lane = head.at.lane;
  const bool gates = p.g.data, convolves = p.kernel_size > 0;

  ForwardConvolution<E, kHead, kCausal> convolution[kTiles];
  if (convolves) {
#pragma unroll
    for (int u = 0; u < kTiles; ++u)
      convolution[u].load(p, head.first_channel() + u * kTile, p.head_dim < kTile ? p.head_dim : kTile, lane,
                          memory.conv_weights[u]);
  }
  Attention<E, kHead, kCausal> attention(head, block.attention);
  RowPair counts;  // number of keys of the lane's rows
#pragma unroll
  for (int h = 0; h < 2; ++h) counts.x[h] = static_cast<float>(segment.position + tile_row(lane, 2 * h) + 1);
  float num_keys = static_cast<float>(segment.position + kTile);  // of the last row
  LaneOutputs<E, kHead> y(head);

  RowSteps<E, kHead, Stage> steps(head, memory.stages);
  steps.run([&](Stage& m, int i, int n) {
    Acc out[kTiles];
    RowPair inverse;
    attention.attend(m, i, n, counts, p.eps, num_keys, out, inverse);
    if constexpr (kCausal) counts.x[0] += kTile, counts.x[1] += kTile, num_keys += kTile;
#pragma unroll
    for (int u = 0; u < kTiles; ++u) {
      if (convolves) {
        const Acc c =
            convolution[u].apply(m.v + Values::shifted(lane) + i * kTile * Values::kRowBytes + u * Values::kTileBytes);
#pragma unroll
        for (int e = 0; e < 8; ++e) {
          float& x = out[u].x[e / 4][e % 4];
          x = x * inverse.x[e / 2 % 2] + scaled_silu<E>(c.x[e / 4][e % 4]);
        }
      } else {
        scale_rows(out[u], inverse);
      }
      if (gates) {
        const Acc g = load_gates<E>(head.at, m.g[i][u]);
#pragma unroll
        for (int e = 0; e < 8; ++e) out[u].x[e / 4][e % 4] *= scaled_silu<E>(g.x[e / 4][e % 4]);
      }
    }
    y.store(m.q[i][0], n, out);
  });

  if (!p.final_kv_state || !segment.is_last()) return;
  if constexpr (!kCausal) head.load_state(head.state_before(), attention.sums());
  head.store_state(head.sequence_state(p.final_kv_state), attention.sums());
  if constexpr (kCausal) {
    if (p.kernel_size > 1) store_final_history<E>(p, segment, head.first_channel(), lane, 32);
    if (head.head == 0 && lane == 0) p.final_position[segment.sequence] = segment.position + head.rows();
  }
}

}  // namespace recgrela::cuda::narrow
