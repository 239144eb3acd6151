// Kernels of the backward of gated_rela for heads of up to 32 channels: persistent teams, which walk the units of work.
#pragma once

#include <algorithm>

#include "kernels/gated_rela/narrow/reverse.cuh"
#include "kernels/gated_rela/tuning.h"

namespace recgrela::cuda::narrow {

// Blocks of two warps per multiprocessor, for which the compiler limits registers. float32 and two warps a head take
// more of them.
template <typename E, int kHead>
constexpr int kBlocks = sizeof(E) == 4 || kHead > kTile ? 4 : RECGRELA_GATED_RELA_BACKWARD_BLOCKS;

// Sums over the queries and gradients of each segment.
template <typename E, int kHead, bool kCausal>
__device__ void walk_query_sums(const RelaPlan& p) {
  using U = Unit<E, kHead>;
  auto& memory = team_memory<BackwardMemory<E, kHead>, U>();
  for (int unit = U::team(); unit < p.num_units(); unit += static_cast<int>(p.num_teams)) {
    U team(p, memory.segment);
    if (!team.find_segment(unit, memory.segment)) continue;
    if (kCausal && memory.segment.is_first()) continue;  // no segment comes before it
    if constexpr (kCausal) store_key_states(team, memory.keys);
    team.sync();
    Reverse<E, kHead, kCausal, true>(team, memory).sweep(false);
  }
}
template <typename E, int kHead, bool kCausal>
__device__ void walk_backward(const RelaPlan& p) {
  using U = Unit<E, kHead>;
  auto& memory = team_memory<BackwardMemory<E, kHead>, U>();
  bool has_weights = false;
  for (int unit = U::team(); unit < p.num_units(); unit += static_cast<int>(p.num_teams)) {
    U team(p, memory.segment);
    if (team.find_segment(unit, memory.segment)) {
      if constexpr (kCausal) store_key_states(team, memory.keys);
      team.sync();
      Reverse<E, kHead, kCausal, false>(team, memory).sweep(has_weights);
      has_weights = true;
    } else if (p.kernel_size > 0) {
      // The slot is empty: its partial sums are zero.
      float* const out =
          p.conv_partials + (memory.segment.slot * p.width() + team.first_channel()) * (kMaxKernelSize + 1);
      for (int i = team.at.lane; i < team.channels() * (kMaxKernelSize + 1); i += 32) out[i] = 0.f;
    }
  }
}

template <typename E, int kHead, bool kCausal>
__global__ void __launch_bounds__(Unit<E, kHead>::kThreads, kBlocks<E, kHead>)
    rela_query_sums_kernel(const RelaPlan p) {
  walk_query_sums<E, kHead, kCausal>(p);
}
template <typename E, int kHead, bool kCausal>
__global__ void __launch_bounds__(Unit<E, kHead>::kThreads, kBlocks<E, kHead>) rela_backward_kernel(const RelaPlan p) {
  walk_backward<E, kHead, kCausal>(p);
}

// Launches kernel_of(head, causal) for all teams. Heads of 8 channels are padded with zeros to a tile of 16.
template <typename E, typename F>
cudaError_t launch_teams(const RelaPlan& plan, cudaStream_t stream, F kernel_of) {
  auto run = [&](auto head) {
    constexpr int kHead = decltype(head)::value;
    using U = Unit<E, kHead>;
    constexpr size_t kBytes = U::kTeams * sizeof(BackwardMemory<E, kHead>);
    static_assert(kBytes <= 99 * 1024, "every GPU from sm_80 on gives a block this much shared memory");
    // A block takes 1 KB of shared memory in addition to its own.
    const int64_t fitting = (max_shared_bytes() + 1024) / (static_cast<int64_t>(kBytes) + 1024);
    const int64_t resident = std::min<int64_t>(kBlocks<E, kHead>, fitting) * U::kTeams * multiprocessors();
    RelaPlan p = plan;
    p.num_teams = std::min(p.num_teams, balanced_teams(p, resident));
    const int64_t blocks = ceil_div(p.num_teams, U::kTeams);
    if (p.causal) return launch(kernel_of(head, std::true_type{}), blocks, U::kThreads, kBytes, stream, p);
    return launch(kernel_of(head, std::false_type{}), blocks, U::kThreads, kBytes, stream, p);
  };
  return dispatch_value<16, 32>(std::max(plan.head_dim, int{kTile}), run);
}

}  // namespace recgrela::cuda::narrow
