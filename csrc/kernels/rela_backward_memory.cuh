// What the two sweeps of the backward share.
#pragma once

#include "kernels/rela_forward.cuh"

namespace recgrela::cuda {

template <typename E, int kHead>
struct BackwardMemory {
  using T = Team<E, kHead>;
  static constexpr int kConvStride = kHead + 8;   // a quarter warp's rows in different banks
  static constexpr bool kShared = T::kWarps > 1;  // what one warp keeps to itself needs no room
  struct alignas(16) Stage {
    E q[T::kTileSize], k[T::kTileSize], halo[T::kHaloSize], v[T::kTileSize], g[T::kTileSize], dy[T::kTileSize];
  };
  Segment segment;
  Stage stages[T::kStages];
  E fq[T::kTileSize], fk[T::kTileSize];
  float z[kShared ? kHead : 4], row_sums[kShared ? T::kWarps * kTile : 4];
  float taps[kHead * (kMaxTaps + 1)], scales[2 * kTile];
  alignas(16) float conv_grad[(kTile + kHalo) * kConvStride];  // of the chunk's rows and the kHalo behind them
};

}  // namespace recgrela::cuda
