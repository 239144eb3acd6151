// Rows of a head on their way through shared memory, by one warp: steps of rows are copied ahead of their use.
//
// 16-bit rows are tiles of narrow/tiles.cuh, and float32 rows are tiles of 16 rows of 64 bytes. In both, and in those
// of angles, lane l copies the vector of 16 bytes at 16 l, so that no bank conflicts arise.
#pragma once

#include "kernels/gated_rela/narrow/head.cuh"
#include "kernels/gated_rela/tuning.h"

namespace recgrela::cuda::narrow {

// Rows of a step: RECGRELA_GATED_RELA_STEP_BYTES of a matrix, but at least a tile.
template <typename E, int kHead>
constexpr int kStepTiles = RECGRELA_GATED_RELA_STEP_BYTES / (kTile * kHead * int{sizeof(E)}) > 1
                               ? RECGRELA_GATED_RELA_STEP_BYTES / (kTile * kHead * int{sizeof(E)})
                               : 1;

// Values of a step after the kMaxHistory rows before them. 16 bytes of padding put eight 16-bit rows in different
// banks; float32 values are tiles like other rows, with the rows before each.
template <typename E, int kHead>
struct ValueRows {
  static constexpr int kTiles = kHead / kTile, kRows = kMaxHistory + kStepTiles<E, kHead> * kTile;
  static constexpr int kRowBytes = sizeof(E) == 2 ? kHead * 2 + 16 : kTile * 4;
  static constexpr int kTileBytes = sizeof(E) == 2 ? kTile * 2 : kRows * kRowBytes;  // from 16 channels to the next
  static constexpr int kBytes = sizeof(E) == 2 ? kRows * kRowBytes : kTiles * kTileBytes;

  // Offset of the vector that this lane copies.
  static __device__ int copied(int lane) { return sizeof(E) == 2 ? lane % 16 * kRowBytes + lane / 16 * 16 : lane * 16; }
  // Offsets of this lane in rows as operands of 16 bits: transposed as B or A, and pairs of shifted rows of 8 channels,
  // those three rows before and two rows before.
  static __device__ int right(int lane) { return lane % 16 * kRowBytes + lane / 16 * 16; }
  static __device__ int left(int lane) { return (lane / 16 * 8 + lane % 8) * kRowBytes + lane / 8 % 2 * 16; }
  static __device__ int shifted(int lane) {
    return sizeof(E) == 2 ? (lane % 16 + lane / 16) * kRowBytes : copied(lane);
  }
};

// Vectors of 16 bytes of 16 rows that a lane copies from global to shared memory: one of each tile of 16-bit rows, and
// two of float32 rows, 8 rows apart. The functions return the lane's address in the next 16 rows.
template <typename E>
struct LaneRows {
  static constexpr int kRows = sizeof(E) == 2 ? 16 : 8;  // of one copy

  // Row and column of the first vector.
  static __device__ int row(int lane) { return sizeof(E) == 2 ? lane % 16 : lane / 4; }
  static __device__ int column(int lane) { return sizeof(E) == 2 ? lane / 16 * 8 : lane % 4 * 4; }

  // Copies kTiles tiles, kTileBytes apart in shared memory, to the lane's place there; zeros if its row is not below
  // `rows`.
  template <int kTiles, int kTileBytes>
  static __device__ const E* copy(unsigned char* to, const E* from, int stride, int rows) {
#pragma unroll
    for (int i = 0; i < kTile; i += kRows) {
#pragma unroll
      for (int t = 0; t < kTiles; ++t)
        copy_async16(to + i * (kTile * int{sizeof(E)}) + t * kTileBytes, from + t * kTile, i < rows);
      from += kRows * stride;
    }
    return from;
  }
};

// The same for angles: (cos, sin) of each pair of channels, [8 rows][8 channels] at a time for 16-bit rows, or as
// float32 rows.
template <typename E>
struct LaneAngles {
  static __device__ int row(int lane) { return sizeof(E) == 2 ? lane / 2 % 8 : lane / 4; }
  static __device__ int column(int lane) { return sizeof(E) == 2 ? lane / 16 * 8 + lane % 2 * 4 : lane % 4 * 4; }

  template <int kTiles>
  static __device__ const float* copy(unsigned char* to, const float* from, int width, int rows) {
#pragma unroll
    for (int i = 0; i < kTile; i += 8) {
#pragma unroll
      for (int t = 0; t < kTiles; ++t) copy_async16(to + i * 64 + t * kRowsBytes<float>, from + t * kTile, i < rows);
      from += 8 * width;
    }
    return from;
  }
};

// Rows of a step of the forward in shared memory.
template <typename E, int kHead, bool kCausal>
struct alignas(16) ForwardStage {
  static constexpr bool kQueries = true, kKeys = kCausal;
  static constexpr int kTiles = kHead / kTile, kRowTiles = kStepTiles<E, kHead>;
  unsigned char q[kRowTiles][kTiles][kRowsBytes<E>], g[kRowTiles][kTiles][kRowsBytes<E>];
  unsigned char k[kCausal ? kRowTiles : 1][kTiles][kCausal ? kRowsBytes<E> : 16];
  unsigned char angles[kRowTiles][kTiles][kRowsBytes<float>];
  alignas(16) unsigned char v[ValueRows<E, kHead>::kBytes];
};

// A row after all rows of a segment.
constexpr int kOutside = 1 << 30;

// Steps through the rows of a head's segment. A Stage has the members q, k, g, angles [step tiles][tiles][bytes] and
// v, and says which of them it needs: kQueries (q, g and the history of v), kKeys (k).
template <typename E, int kHead, typename Stage>
class RowSteps {
 public:
  static constexpr int kTiles = kHead / kTile, kRowTiles = kStepTiles<E, kHead>, kRows = kRowTiles * kTile;
  using Values = ValueRows<E, kHead>;

  __device__ RowSteps(const Head<E, kHead>& head, Stage (&stages)[2]) : head_(head), stages_(stages) {
    const RelaPlan& p = head.p;
    const int lane = head.at.lane;
    if constexpr (Stage::kQueries) q_ = rows(p.q), g_ = rows(gates());
    if constexpr (Stage::kKeys) k_ = rows(p.k);
    v_ = rows(p.v);
    left_ = head.rows();
    // The padding of a head becomes zeros, as rows after the segment.
    row_ = head.in_head(LaneRows<E>::column(lane)) ? LaneRows<E>::row(lane) : kOutside;
    angles_row_ = head.in_head(LaneAngles<E>::column(lane)) ? LaneAngles<E>::row(lane) : kOutside;
    const int row = LaneRows<E>::row(lane) - (LaneRows<E>::kRows - kMaxHistory);
    copies_history_ = Stage::kQueries && p.kernel_size > 0 && row >= 0 && row_ < kOutside;
    if (p.rotary) {
      const int64_t position = head.segment.position + LaneAngles<E>::row(lane);
      angles_ = p.rotary + position * p.width() + head.first_channel() + LaneAngles<E>::column(lane);
    } else {
      rotate_nothing();
    }
    if (copies_history_) start_history(row);
  }

  // Calls use(stage, i, n) for the row tiles i of each step, where n rows of the segment are left. After the last one
  // of a step, copies overwrite the stage: lanes must not read then what other lanes have copied.
  template <typename Use>
  __device__ void run(Use use) {
    int n = left_;
    copy(stages_[0]);
    copies_commit();
    for (int stage = 0; n > 0; stage ^= 1) {
      if (left_ > 0) {
        Stage& next = stages_[stage ^ 1];
        if constexpr (Stage::kQueries) {
          const E* const from = v_ - LaneRows<E>::kRows * static_cast<int>(head_.p.v.stride);
          unsigned char* const to = values(next) - LaneRows<E>::kRows * Values::kRowBytes;
#pragma unroll
          for (int t = 0; t < kTiles; ++t)
            if (copies_history_) copy_async16(to + t * Values::kTileBytes, from + t * kTile);
        }
        copy(next);
      }
      copies_commit();
      copies_wait<1>();
      __syncwarp();
#pragma unroll
      for (int i = 0; i < kRowTiles; ++i) {
        if (i > 0 && n <= 0) break;
        use(stages_[stage], i, n);
        n -= kTile;
      }
    }
    copies_wait<0>();
  }

 private:
  __device__ const RowMatrix& gates() const { return head_.p.g.data ? head_.p.g : head_.p.q; }  // absent: not used
  __device__ const E* rows(const RowMatrix& m) const {
    const int lane = head_.at.lane;
    return static_cast<const E*>(m.data) + (head_.segment.begin + LaneRows<E>::row(lane)) * m.stride +
           head_.first_channel() + LaneRows<E>::column(lane);
  }
  // This lane's place in the first row tile of the values.
  __device__ unsigned char* values(Stage& m) const {
    return m.v + kMaxHistory * Values::kRowBytes + Values::copied(head_.at.lane);
  }

  // Sets all angles to (1, 0), and to zeros in the padding of a head.
  __device__ void rotate_nothing() {
    const int lane = head_.at.lane;
    const float one = head_.in_head(LaneAngles<E>::column(lane)) ? 1.f : 0.f;
#pragma unroll 1
    for (int i = 0; i < 2; ++i) {
      float4* const angles = reinterpret_cast<float4*>(stages_[i].angles);
#pragma unroll 1
      for (int j = 0; j < int{sizeof(stages_[i].angles) / 512}; ++j)
        angles[j * 32 + lane] = make_float4(one, 0.f, one, 0.f);
    }
  }

  // Copies the kMaxHistory rows before the segment: of its sequence, of the initial history, or zeros.
  __device__ void start_history(int row) {
    const RelaPlan& p = head_.p;
    const int history = p.kernel_size - 1, i = row - (kMaxHistory - history);
    unsigned char* const to = values(stages_[0]) - LaneRows<E>::kRows * Values::kRowBytes;
    const E* from = v_ - LaneRows<E>::kRows * static_cast<int>(p.v.stride);
    bool valid = true;
    if (head_.segment.is_first()) {
      valid = p.initial_history && i >= 0;
      if (valid)
        from = static_cast<const E*>(p.initial_history) + (head_.segment.sequence * history + i) * p.width() +
               head_.first_channel() + LaneRows<E>::column(head_.at.lane);
    }
#pragma unroll
    for (int t = 0; t < kTiles; ++t) copy_async16(to + t * Values::kTileBytes, from + t * kTile, valid);
  }

  // Starts the copies of a step.
  __device__ void copy(Stage& m) {
    using Rows = LaneRows<E>;
    const RelaPlan& p = head_.p;
    const int to = head_.at.lane * 16, rows = left_ - row_;
#pragma unroll
    for (int i = 0; i < kRowTiles; ++i) {
      constexpr int kBytes = kRowsBytes<E>;
      const int n = rows - i * kTile;
      if constexpr (Stage::kQueries)
        q_ = Rows::template copy<kTiles, kBytes>(m.q[i][0] + to, q_, static_cast<int>(p.q.stride), n);
      if constexpr (Stage::kKeys)
        k_ = Rows::template copy<kTiles, kBytes>(m.k[i][0] + to, k_, static_cast<int>(p.k.stride), n);
      v_ = Rows::template copy<kTiles, Values::kTileBytes>(values(m) + i * kTile * Values::kRowBytes, v_,
                                                           static_cast<int>(p.v.stride), n);
      if constexpr (Stage::kQueries)
        g_ = Rows::template copy<kTiles, kBytes>(m.g[i][0] + to, g_, static_cast<int>(gates().stride), n);
    }
    if (p.rotary) {
#pragma unroll
      for (int i = 0; i < kRowTiles; ++i)
        angles_ = LaneAngles<E>::template copy<kTiles>(m.angles[i][0] + to, angles_, static_cast<int>(p.width()),
                                                       left_ - angles_row_ - i * kTile);
    }
    left_ -= kRows;
  }

  const Head<E, kHead>& head_;
  Stage (&stages_)[2];
  int left_;              // rows that are not yet copied
  int row_, angles_row_;  // rows of the lane's vectors; beyond all rows in the padding of a head
  bool copies_history_;
  const E *q_ = nullptr, *k_ = nullptr, *v_, *g_ = nullptr;  // addresses of the lane's next vectors
  const float* angles_ = nullptr;
};

}  // namespace recgrela::cuda::narrow
