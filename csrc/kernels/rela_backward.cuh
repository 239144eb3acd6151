// The backward of gated_rela for a segment, from its raw inputs, in two sweeps.
//
// With a = dy * SiLU(g), Z the denominator, o the attention's output and u = a / Z, dZ = -(a . o) / Z:
//   queries, forward:   d(R phi(q))_i = u_i S_i^T,      d phi(q)_i += dZ_i z_i;   and dg, 1 / Z and dZ of each row
//   keys, in reverse:   d(R phi(k))_j = v_j U_j^T,      d phi(k)_j += w_j,        dv_j = R phi(k)_j U_j + convolution's
//   where U_j = sum_i R phi(q)_i (x) u_i, w_j = sum_i dZ_i phi(q)_i     over i >= j (causal) or all i
// Both sweeps go by chunks as the forward does: products within the chunk and with a state. As there, what enters a
// product in 16 bits is kept near 1: rows are scaled by n / Z, n the chunk's count, and sums divided by n.
#pragma once

#include "kernels/rela_key_sweep.cuh"
#include "kernels/rela_query_sweep.cuh"

namespace recgrela::cuda {

enum class Sweeps { kBoth, kQueries, kKeys };

// One kernel for both sweeps leaves the operands of the second in the cache; heads of 128 channels have no registers
// for that. The first launch does what needs no sums of queries: all of it for a causal sequence of one segment where
// both sweeps are in the kernel, else the queries' sweep. The second does the keys' sweep of the others.
template <typename E, int kHead, Sweeps kSweeps>
__global__ void __launch_bounds__(Team<E, kHead>::kThreads, Team<E, kHead>::kBackwardBlocks)
    backward_kernel(const RelaPlan p) {
  using T = Team<E, kHead>;
  auto& memory = team_memory<BackwardMemory<E, kHead>, T>();
  T team(p, memory.segment);
  const bool found = team.find_work(memory.segment);
  if (!found && team.head < p.num_heads && !p.second && p.conv_width > 0) {
    // No segment: its place among the partial sums is zero.
    float* const out = p.conv_partial + (team.segment.slot * p.width() + team.head_channel()) * (kMaxTaps + 1);
    for (int i = team.thread; i < p.head_dim * (kMaxTaps + 1); i += 32 * T::kWarps) out[i] = 0.f;
  }
  if (!found) return;
  const bool whole = kSweeps == Sweeps::kBoth && p.causal && team.segment.count == 1;
  if (p.second && whole) return;
  team.load_taps(memory.taps);
  team.sync();
  if constexpr (kSweeps != Sweeps::kKeys)
    if (!p.second) query_sweep(team, memory);
  if constexpr (kSweeps != Sweeps::kQueries)
    if (p.second || whole) key_sweep(team, memory);
}

}  // namespace recgrela::cuda
