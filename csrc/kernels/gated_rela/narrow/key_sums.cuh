// Sums over the keys and values of a segment, for the segments after it (causal) or all of its sequence
// (bidirectional), by one warp a head of up to 32 channels.
#pragma once

#include "kernels/gated_rela/narrow/attention.cuh"
#include "kernels/gated_rela/narrow/attention_float32.cuh"

namespace recgrela::cuda::narrow {

template <typename E, int kHead>
struct KeySumsMemory {
  struct alignas(16) Stage {
    static constexpr bool kQueries = false, kKeys = true;
    static constexpr int kTiles = kHead / kTile, kRowTiles = kStepTiles<E, kHead>;
    unsigned char k[kRowTiles][kTiles][kRowsBytes<E>], plain[kTiles][sizeof(E) == 2 ? kRowsBytes<E> : 16];
    unsigned char angles[kRowTiles][kTiles][kRowsBytes<float>];
    alignas(16) unsigned char v[ValueRows<E, kHead>::kBytes];
  };
  RelaSegment segment;
  Stage stages[2];
};
template <typename E, int kHead>
struct KeySumsBlock {
  KeySumsMemory<E, kHead> warps[Head<E, kHead>::kWarps];
};

template <typename E, int kHead>
__global__ void __launch_bounds__(64, kForwardBlocks<E, kHead, false>) rela_key_sums_kernel(const RelaPlan p) {
  constexpr int kTiles = kHead / kTile;
  using Memory = KeySumsMemory<E, kHead>;
  using Values = ValueRows<E, kHead>;
  auto& memory = reinterpret_cast<KeySumsBlock<E, kHead>*>(dynamic_shared())->warps[threadIdx.x / 32];
  Head<E, kHead> head(p, memory.segment);
  if (!head.find_segment(memory.segment)) return;
  if (p.causal && memory.segment.is_last()) return;  // no segment comes after it
  const TileLane& at = head.at;
  Keys<E, kHead> keys(head);
  RowSteps<E, kHead, typename Memory::Stage> steps(head, memory.stages);
  steps.run([&](typename Memory::Stage& m, int i, int n) {
    const unsigned char* const v = m.v + (kMaxHistory + i * kTile) * Values::kRowBytes;
#pragma unroll
    for (int t = 0; t < kTiles; ++t)
      keys.start_sum(t, m.k[i][t], m.plain[t], load_lane_angles<E>(at, m.angles[i][t]), n);
    __syncwarp();
#pragma unroll
    for (int t = 0; t < kTiles; ++t) keys.finish_sum(t, m.plain[t]);
    keys.add_products(m.k[i][0], v);
    __syncwarp();  // the next tile or step overwrites what lanes have read
  });
  keys.complete();
  head.store_state(head.state(p.key_states), keys.sums);
}

}  // namespace recgrela::cuda::narrow
