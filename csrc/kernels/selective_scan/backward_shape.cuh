// Sizes of selective_scan's backward: how a warp divides channels and states, and the layout of shared memory.
#pragma once

#include <type_traits>

#include "kernels/common/host.cuh"
#include "kernels/selective_scan/params.h"
#include "kernels/selective_scan/tuning.h"

namespace recgrela::cuda {

constexpr int kTileRows = 4;  // rows between two sums over lanes
constexpr int kChunkRows = SelectiveScanParams::kCheckpointRows;
constexpr int kTiles = kChunkRows / kTileRows;
constexpr int kMaxSharedBytes = 99 * 1024;  // every GPU from sm_80 on gives a block this much shared memory

// A thread processes kThreadStates_ states of kThreadChannels_ channels; kLanes_ lanes together have all states of
// these channels.
template <int kLanes_, int kThreadChannels_, int kThreadStates_>
struct BackwardShape {
  static constexpr int kLanes = kLanes_, kChannels = kThreadChannels_, kStates = kThreadStates_;
  static constexpr int kGroups = 32 / kLanes;                // groups of kChannels channels in a warp
  static constexpr int kWarpChannels = kGroups * kChannels;  // channels of a warp
  static constexpr int kAllStates = kLanes * kStates;        // N rounded up; the padding is zero
  static constexpr int kQuads = kAllStates / 4;              // groups of 4 states in a row of B or C
  // Rows of B and C in shared memory, and rows whose gradients of B and C are added over the warps at once.
  static constexpr bool kWhole = kAllStates <= 16;  // whole chunks of both
  static constexpr int kStageRows = kWhole ? kChunkRows : kAllStates <= 64 ? 256 / kAllStates : 4;
  static constexpr int kSumRows = kWhole ? kChunkRows : kTileRows;
  static constexpr bool kStageHasTiles = kStageRows > kSumRows;  // and gradients are added between them

  // Elements of a row: 8 lanes divide the channels of a row of a tile; kParts lanes have the same channel.
  static constexpr int kElements = kWarpChannels > 8 ? kWarpChannels / 8 : 1;
  static constexpr int kParts = kWarpChannels < 8 ? 8 / kWarpChannels : 1;
  static_assert(kParts == 1 || kSumRows == kTileRows, "a barrier must separate tiles whose lanes share elements");

  // Floats in shared memory: rows of B and C of a block, and arrays of each warp, one after the other.
  static constexpr int kStageSize = 2 * kStageRows * kAllStates;
  static constexpr int kTileSize = kTileRows * kWarpChannels;                              // of elements of a tile
  static constexpr int kChunkSize = kTiles * kTileSize;                                    // of elements of a chunk
  static constexpr int kByStateSize = kGroups > 1 ? kTileRows * kGroups * kAllStates : 0;  // d_C or d_B by groups
  static constexpr int kByChannelSize = kLanes * kTileSize;                                // sums by groups of states
  static constexpr int kStatesSize = 32 * kChannels * kStates;                             // states of all threads
  static constexpr int kStatesAt = kByStateSize;                                           // states before tiles
  static constexpr int kByChannelAt = kStatesAt + (kTiles - 2) * kStatesSize;              // two sums
  static constexpr int kSumsAt = kByChannelAt + 2 * kByChannelSize;     // d_B and d_C of the warp, by rows
  static constexpr int kChunkAt = kSumsAt + 2 * kSumRows * kAllStates;  // steps, delta_u, slopes, u; grad of a tile
  static constexpr int kVectorsAt = kChunkAt + (4 * kChunkSize + kTileSize + 31) / 32 * 32;  // D and delta_bias
  static constexpr int kTotalsAt =
      kVectorsAt + (2 * kWarpChannels + 31) / 32 * 32;                // d_D and d_delta_bias of all threads
  static constexpr int kGradientAt = kTotalsAt + 2 * 32 * kElements;  // d_A of all threads
  static constexpr int kWarpSize = (kGradientAt + kStatesSize + 63) / 64 * 64;

  // Warps of a block, at most: the same on every GPU, so that sums have the same order.
  static constexpr int kFittingWarps = (kMaxSharedBytes / int{sizeof(float)} - kStageSize) / kWarpSize;
  static constexpr int kMaxWarps = kFittingWarps < 4 ? kFittingWarps : 4;

  // Blocks on a multiprocessor for which the registers suffice.
  static constexpr int kResident = kChannels * kStates <= 8 ? 3 : 2;

  static constexpr size_t shared_bytes(int warps) { return sizeof(float) * (kStageSize + warps * kWarpSize); }
};

// Calls f(BackwardShape{}) with the fewest lanes that hold `num_states` states.
template <typename F>
cudaError_t dispatch_backward(int num_states, F&& f) {
  constexpr int kChannels = RECGRELA_SELECTIVE_SCAN_BACKWARD_CHANNELS;
  if (num_states <= 8) return f(BackwardShape<2, 2, 4>{});
  if (num_states <= 16) return f(BackwardShape<4, kChannels, 4>{});
  if (num_states <= 32) return f(BackwardShape<8, kChannels, 4>{});
  if (num_states <= 64) return f(BackwardShape<16, kChannels, 4>{});
  if (num_states <= 128) return f(BackwardShape<32, kChannels, 4>{});
  return f(BackwardShape<32, kChannels / 2, 8>{});
}

}  // namespace recgrela::cuda
