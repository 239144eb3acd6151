// Forward of gated_rela for heads of 64 and 128 channels.
//
// A chunk of kRows rows takes three barriers. Before the first, queries and keys arrive; after it, each warp converts
// them at its own channels, while values and gates arrive. After the second, the warps share out the scores of the
// lower triangle, multiply queries with the state, and add keys to it. After the third, queries and keys of the next
// chunk start to arrive, while each warp multiplies the scores with its own values and finishes its own outputs. A
// value that is not finite also reaches the rows before it in its chunk and, through the convolution at 16 bits, seven
// other channels of its row and of the three after it.
#pragma once

#include "kernels/gated_rela/history.cuh"
#include "kernels/gated_rela/wide/features.cuh"
#include "kernels/gated_rela/wide/finish.cuh"
#include "kernels/gated_rela/wide/scores.cuh"

namespace recgrela::cuda {

template <typename E, int kHead>
struct WideForwardMemory {
  using T = WideTeam<E, kHead>;
  TileMatrix<E, kHead, T::kRows> q, k;
  WideValues<E, kHead> v;           // the chunk's first row is row kWideBefore
  RawMatrix<E, kHead, T::kRows> g;  // and then, at 16 bits, the output
  WideScores<E, kHead> scores;
  alignas(16) float denominators[T::kRows * T::kTiles];  // by rows and warps
  alignas(16) float inverse[T::kRows];                   // 1 / (factor * denominator)
  WideConvWeights<E, kHead> conv;
  alignas(8) float sum[kHead];  // of phi(k)
  WideUnit unit;
};

// Converts queries and keys of the chunk at own channels, and stores own parts of the denominators.
template <typename E, int kHead>
__device__ void make_chunk_features(const WideTeam<E, kHead>& team, WideForwardMemory<E, kHead>& m) {
  using T = WideTeam<E, kHead>;
  const float* angle = find_wide_angle(team);
  RowVector sum = team.row_vector(m.sum);
  float* denominators = m.denominators + team.warp;
  int n = team.rows_left();
  const bool causal = team.p.causal;
  const int end = max(n - T::kRows, 0);
#pragma unroll 1
  for (int r = 0; n > end; ++r, n -= kTile) {
    const WideAngles angles = load_tile_angles(team, angle, n);
    Acc running;
    if (causal) {
      running = make_keys(team, m.k, r, n, angles, sum);
    } else {
#pragma unroll
      for (int e = 0; e < 8; ++e) running.x[e / 4][e % 4] = sum.x[e / 4 * 2 + e % 2];
    }
    const Acc queries = make_queries(team, m.q, r, angles);
    store_dots(denominators, T::kTiles, queries, running, team.lane);
    denominators += kTile * T::kTiles;
  }
  if (causal) T(team.p, m.unit).store_row_vector(m.sum, sum);
}

// Adds the products of the queries of the chunk with the state of keys. kFull: all tiles have rows.
template <bool kFull, typename E, int kHead, typename Q>
__device__ void add_state_product(const WideTeam<E, kHead>& team, Q& q, const Acc (&state)[kHead / kTile],
                                  Acc (&out)[WideTeam<E, kHead>::kRowTiles]) {
  using T = WideTeam<E, kHead>;
  const int tiles = team.num_tiles();
  const float factor = team.factor();
#pragma unroll
  for (int t = 0; t < T::kTiles; ++t) {
    limit_overlap<E>();
    const RightSplit<E> s = to_right<E>(state[t], factor);
#pragma unroll
    for (int r = 0; r < T::kRowTiles; ++r) {
      // The first tile has rows. With the fewest registers, the branch keeps the compiler from mixing tiles.
      if (kFull || (r == 0 && !T::kShort) || r < tiles) {
        limit_overlap<E>();
        add_product(out[r], load_left<E, false>(q.tile(t, r), team.at), s);
      }
    }
  }
}

template <typename E, int kHead>
__global__ void __launch_bounds__(WideTeam<E, kHead>::kThreads, WideTeam<E, kHead>::kBlocks)
    rela_wide_forward_kernel(const RelaPlan p) {
  using T = WideTeam<E, kHead>;
  auto& m = *reinterpret_cast<WideForwardMemory<E, kHead>*>(dynamic_shared());
  check_sequences(p.sequences, p.initial_position, p.rotary ? p.rotary_positions : 0);
  if (!T::find_unit(p, m.unit)) return;
  Acc state[T::kTiles];
  auto copy_features = [&](auto ahead) {
    constexpr int kAhead = decltype(ahead)::value;
    const T team(p, m.unit);
    if (team.rows_left() > kAhead) {
      team.template copy_rows<0, kAhead>(m.q, m.unit.q, p.q);
      if (p.causal) team.template copy_rows<0, kAhead>(m.k, m.unit.k, p.k);
    }
    copies_commit();
  };
  copy_features(std::integral_constant<int, 0>{});
  {
    const T team(p, m.unit);
    load_conv_weights(team, m.conv);
    team.load_state(team.state_before(), state, m.sum);
  }
#pragma unroll 1
  while (T(p, m.unit).rows_left() > 0) {
    copies_wait<0>();
    __syncthreads();
    {
      const T team(p, m.unit);
      team.template copy_rows<kWideBefore>(m.v, m.unit.v, p.v);
      if (p.kernel_size > 0) copy_history(team, m.v);
      if (p.g.data) team.copy_rows(m.g, m.unit.g, p.g);
      copies_commit();
    }
    make_chunk_features(T(p, m.unit), m);
    copies_wait<0>();
    __syncthreads();
    invert_denominators(T(p, m.unit), m.denominators, m.inverse);
    if (p.causal) make_scores(T(p, m.unit), m.q, m.k, m.scores);
    Acc out[T::kRowTiles];
    if (T(p, m.unit).num_tiles() == T::kRowTiles) {
      add_state_product<true>(T(p, m.unit), m.q, state, out);
    } else {
      add_state_product<false>(T(p, m.unit), m.q, state, out);
    }
    if (p.causal) add_wide_keys(T(p, m.unit), m.k, m.v, state);
    __syncthreads();
    copy_features(std::integral_constant<int, T::kRows>{});
    if (p.causal) add_score_products(T(p, m.unit), m.scores, m.v, out);
    add_convolution(T(p, m.unit), m, out);
    store_outputs(T(p, m.unit), m, out);
    T(p, m.unit).advance(m.unit);
  }

  const RelaSegment& segment = m.unit.segment;
  if (p.final_kv_state && segment.is_last()) {
    const T team(p, m.unit);
    team.store_state(team.sequence_state(p.final_kv_state), state, m.sum);
    if (!p.causal) return;
    if (p.kernel_size > 1) store_final_history<E>(p, segment, int64_t{m.unit.head} * kHead, threadIdx.x, T::kThreads);
    if (m.unit.head == 0 && threadIdx.x == 0) p.final_position[segment.sequence] = segment.position + m.unit.rows;
  }
}

}  // namespace recgrela::cuda
