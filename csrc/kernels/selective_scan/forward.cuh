// Forward of selective_scan, and the final states of segments that start from zero, in both directions.
#pragma once

#include <type_traits>

#include "kernels/selective_scan/forward_team.cuh"

namespace recgrela::cuda {

// Blocks on a multiprocessor for which the registers suffice.
template <int kLanes, Scan kScan>
constexpr int kScanBlocks = kScan == Scan::kReverseSum && kLanes < 4 ? 3 : kScanResident / scan_threads(kLanes);

template <typename E, int kLanes, int kStates, Scan kScan>
__global__ void __launch_bounds__(scan_threads(kLanes), kScanBlocks<kLanes, kScan>)
    selective_scan_kernel(const SelectivePlan p) {
  using Team = ForwardTeam<E, kLanes, kStates, kScan>;
  using Tiles = typename Team::Tiles;
  constexpr bool kForward = Team::kForward, kReverse = Team::kReverse;
  if constexpr (kForward) check_sequences(p.sequences);
  const Segment segment = find_segment(p.segments, blockIdx.x / p.scan.columns);
  if (!segment.exists()) return;
  if (!kForward && (kReverse ? segment.is_first() : segment.is_last())) return;
  Team team(p, segment);
  const auto& rows = team.rows;
  Tiles tiles(p, rows, kReverse ? p.C : p.B, p.C);
  // Where the thread's channel stores its last state, of [.., C]; negative: nowhere. Not in a register during the scan.
  int64_t* const end_index = reinterpret_cast<int64_t*>(dynamic_shared() + Tiles::bytes(p.scan.threads)) + threadIdx.x;
  *end_index = !kForward                            ? team.channel_of(segment.slot)
               : segment.is_last() && p.final_state ? team.channel_of(segment.sequence)
                                                    : -1;
  const float* tile = nullptr;
  int tile_groups = 0;  // left in the tile
  float* checkpoint = nullptr;
  int checkpoint_groups = INT32_MAX;  // left before the next checkpoint
  if constexpr (kForward) {
    team.load_initial_state(segment);
    if (p.checkpoints) {  // segments begin at multiples of kCheckpointRows in their sequence
      const int64_t index = first_slot(p.sequences, p.kCheckpointRows, segment.sequence) +
                            (segment.begin - segment.sequence_begin) / p.kCheckpointRows;
      checkpoint = team.states_of(p.checkpoints, team.channel_of(index)), checkpoint_groups = 0;
    }
  }
#pragma unroll 1
  for (int place = 0; rows.holds(place); place += rows.place(kScanRows)) {
    if (tile_groups == 0) tile = tiles.next() + 4 * team.lane, tile_groups = Tiles::rows(p.scan.threads) / kScanRows;
    if (kForward && checkpoint_groups == 0) {
      team.store_states(checkpoint);
      checkpoint += p.state_size(), checkpoint_groups = p.kCheckpointRows / kScanRows;
    }
    team.process_group(tile, place);
    tile += kScanRows * Tiles::kRowFloats, --tile_groups, --checkpoint_groups;
  }
  const int64_t index = *end_index;
  if (!kForward) {
    team.store_states(team.states_of(p.segment_states, index));
    if (team.in_range && team.lane == 0) p.segment_steps[index] = team.steps;
  } else if (index >= 0) {
    team.store_states(team.states_of(p.final_state, index));
  }
}

// Launches a scan with the fewest lanes of a channel, and states of a lane, that hold N states.
template <typename E, Scan kScan>
cudaError_t launch_scan(const SelectivePlan& p, cudaStream_t stream) {
  return dispatch_value<1, 2, 4, 8, 16>(p.scan.lanes, [&](auto lanes) {
    constexpr int kLanes = decltype(lanes)::value;
    const auto run = [&](auto states) {
      constexpr int kStates = decltype(states)::value;
      return launch(
          selective_scan_kernel<E, kLanes, kStates, kScan>, p.segments.num_slots * p.scan.columns, p.scan.threads,
          ForwardTeam<E, kLanes, kStates, kScan>::Tiles::bytes(p.scan.threads) + p.scan.threads * sizeof(int64_t),
          stream, p);
    };
    if constexpr (kLanes == 1)
      if (p.scan.states == 8) return run(std::integral_constant<int, 8>{});
    return run(std::integral_constant<int, 16>{});
  });
}

template <typename E>
cudaError_t SelectiveKernels<E>::sum_segments(const SelectivePlan& p, bool reverse, cudaStream_t stream) {
  return reverse ? launch_scan<E, Scan::kReverseSum>(p, stream) : launch_scan<E, Scan::kSum>(p, stream);
}

template <typename E>
cudaError_t SelectiveKernels<E>::forward(const SelectivePlan& p, cudaStream_t stream) {
  return launch_scan<E, Scan::kForward>(p, stream);
}

}  // namespace recgrela::cuda
