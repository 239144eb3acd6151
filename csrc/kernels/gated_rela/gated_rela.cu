// Host side of gated_rela, and the kernels that depend neither on the element type nor on the head size.
//
// A forward launches key_sums (sums over the keys and values of each segment), carry_states (which turns them into the
// state of each segment) and forward, which also checks the offsets. A backward launches key_sums and
// carry_states unless the forward has saved their result, query_sums and carry_states, backward, and a sum of the
// convolution's partial gradients. carry_states is needed only if sequences are cut; otherwise the causal form needs no
// sums either.
#include <algorithm>
#include <utility>

#include "kernels/common/check.cuh"
#include "kernels/common/reduce.cuh"
#include "kernels/common/workspace.cuh"
#include "kernels/gated_rela/plan.cuh"
#include "kernels/gated_rela/tuning.h"

namespace recgrela::cuda {
namespace {

constexpr int kCarryThreads = 128;

struct CarryArgs {
  RelaPlan plan;
  float* states = nullptr;         // [slots, H, d + 1, d]: in: sums over segments; out: states before them
  const float* initial = nullptr;  // [B, H, d + 1, d]; null: zeros
  bool reverse = false;
};

// Replaces the sum over each segment by the state that the segment starts from: in the causal form the initial state
// plus the sums over all segments before it (after it, if reverse), in the bidirectional form the sum over all
// segments. A thread processes one element of the state of a head.
__global__ void __launch_bounds__(kCarryThreads) rela_carry_states_kernel(const CarryArgs args) {
  constexpr int kBatch = 8;
  const RelaPlan& p = args.plan;
  const int64_t size = p.state_size(), blocks = (size + kCarryThreads - 1) / kCarryThreads;
  const int64_t element = blockIdx.x % blocks * kCarryThreads + threadIdx.x, sequence_head = blockIdx.x / blocks;
  const int64_t b = sequence_head / p.num_heads, head = sequence_head % p.num_heads;
  const int64_t count = count_segments(p.segments, sequence_rows(p.sequences, b));
  if (count <= 1 || element >= size) return;
  const int64_t step = (args.reverse ? -1 : 1) * p.num_heads * size;
  const int64_t first = first_slot(p.segments, b) + (args.reverse ? count - 1 : 0);
  float* const states = args.states + (first * p.num_heads + head) * size + element;
  float* batch = states;
  float sum = args.initial ? args.initial[sequence_head * size + element] : 0.f;
  const int64_t num_sums = p.causal ? count - 1 : count;  // no segment needs the sum of the last one if causal
  for_each_in_batches<kBatch>(
      num_sums, [&](int k, int64_t i) { return i < num_sums ? batch[k * step] : 0.f; },
      [&](int k, int64_t, float segment_sum) {
        if (p.causal) batch[k * step] = sum;
        sum += segment_sum;
      },
      [&] { batch += kBatch * step; });
  if (p.causal) {
    states[num_sums * step] = sum;
  } else {
    for (int64_t i = 0; i < count; ++i) states[i * step] = sum;
  }
}

// Stores column [channel, i] of the gradients of the convolution: weight i - (4 - K), or the bias for i = 4.
struct StoreConvGradients {
  float *d_weight, *d_bias;
  int kernel_size;

  __device__ void operator()(int64_t column, float sum) const {
    const int64_t channel = column / (kMaxKernelSize + 1);
    const int i = static_cast<int>(column % (kMaxKernelSize + 1)), k = i - (kMaxKernelSize - kernel_size);
    if (i == kMaxKernelSize)
      d_bias[channel] = sum;
    else if (k >= 0)
      d_weight[channel * kernel_size + k] = sum;
  }
};

RelaPlan make_plan(const GatedRelaParams& params) {
  RelaPlan p;
  static_cast<GatedRelaParams&>(p) = params;
  auto step = [](const RowMatrix& rows) { return static_cast<int>(-kTile * rows.stride); };
  p.steps = {step(p.q),   step(p.k),   step(p.v),   step(p.g),  step(p.d_y),
             step(p.d_q), step(p.d_k), step(p.d_v), step(p.d_g)};
  const Sequences& s = params.sequences;
  int64_t segment_rows = params.segment_rows;
  if (segment_rows == 0) {
    // About 32 warps per multiprocessor. Shorter segments would spend too much time on the sums of their keys, which
    // are computed in addition to the rest.
    constexpr int64_t kMinRows = 256, kWarps = 32;
    const int64_t warps_per_head = std::max(1, p.head_dim / kTile);
    segment_rows = std::max(kMinRows, s.num_rows * p.num_heads * warps_per_head / (kWarps * multiprocessors()));
  }
  constexpr int64_t kMaxRows = 1 << 28;  // 31 bits hold four bytes for each row of a segment
  p.segments = plan_segments(s, std::min(ceil_div(segment_rows, kTile) * kTile, kMaxRows));
  const int64_t max_length = s.max_length > 0 ? std::min(s.max_length, s.num_rows) : s.num_rows;
  const int64_t rows = p.head_dim > 32 ? gradient_row_tiles(size_of(p.dtype), p.head_dim) * kTile : kTile;
  p.max_chunks = p.causal ? std::max<int64_t>(1, ceil_div(std::min(max_length, p.segments.rows), rows)) : 1;
  return p;
}

// Places the arrays of the plan in the workspace; returns its size.
size_t lay_out(RelaPlan& p, bool backward) {
  Workspace workspace(p.workspace);
  const int64_t states = p.segments.is_cut || !p.causal ? p.num_units() * p.state_size() : 0;
  p.key_states = workspace.take_floats(states);
  if (!backward) return workspace.size();
  p.query_states = workspace.take_floats(states);
  auto take_conv_partials = [&] {
    p.conv_partials =
        workspace.take_floats(p.kernel_size > 0 ? p.segments.num_slots * p.width() * (kMaxKernelSize + 1) : 0);
  };
  const int64_t state_bytes = p.num_tiles() * p.num_tiles() * kPackedTile * size_of(p.dtype);
  if (p.head_dim <= 32) {
    // Only the teams that the device runs at once walk the units, so that their workspace stays in the L2 cache. A
    // launch may have fewer of them.
    const int64_t parts = p.dtype == DType::kFloat32 ? 3 : 1, tiles = p.num_tiles();  // as narrow::KeyState
    const int64_t chunk_bytes = tiles * (tiles * parts * kPackedTile * 2 + 8 * int64_t{sizeof(float4)});
    p.num_teams = balanced_teams(p, 2 * RECGRELA_GATED_RELA_BACKWARD_BLOCKS / tiles * multiprocessors());
    p.chunk_states = workspace.take_bytes(p.causal ? p.num_teams * p.max_chunks * chunk_bytes : 0);
    take_conv_partials();
    return workspace.size();
  }
  p.num_teams = balanced_teams(p, gradient_blocks(p.head_dim) * multiprocessors());
  p.chunk_states = workspace.take_bytes(p.num_teams * (p.max_chunks + 1) * state_bytes);
  const int64_t row_tiles = gradient_row_tiles(size_of(p.dtype), p.head_dim);
  p.chunk_sums = workspace.take_floats(p.num_teams * p.max_chunks * row_tiles * p.head_dim);
  take_conv_partials();
  return workspace.size();
}

cudaError_t carry_states(const RelaPlan& p, float* states, const float* initial, bool reverse, cudaStream_t stream) {
  if (!p.segments.is_cut) return cudaSuccess;
  const int64_t blocks = p.sequences.num_sequences * p.num_heads * ceil_div(p.state_size(), kCarryThreads);
  return launch(rela_carry_states_kernel, blocks, kCarryThreads, 0, stream, CarryArgs{p, states, initial, reverse});
}

// Finds the states of keys before all segments (causal), or of whole sequences (bidirectional).
template <typename E>
cudaError_t find_key_states(const RelaPlan& p, cudaStream_t stream) {
  if (p.causal && !p.segments.is_cut) return cudaSuccess;
  RECGRELA_RETURN_IF_ERROR(RelaKernels<E>::key_sums(p, stream));
  return carry_states(p, p.key_states, p.initial_kv_state, false, stream);
}

// Finds the states of queries after all segments (causal), or of whole sequences (bidirectional).
template <typename E>
cudaError_t find_query_states(const RelaPlan& p, cudaStream_t stream) {
  if (p.causal && !p.segments.is_cut) return cudaSuccess;
  RECGRELA_RETURN_IF_ERROR(RelaKernels<E>::query_sums(p, stream));
  return carry_states(p, p.query_states, p.d_final_kv_state, true, stream);
}

}  // namespace

size_t gated_rela_forward_workspace(const GatedRelaParams& params) {
  RelaPlan p = make_plan(params);
  return lay_out(p, false);
}

size_t gated_rela_backward_workspace(const GatedRelaParams& params) {
  RelaPlan p = make_plan(params);
  return lay_out(p, true);
}

cudaError_t gated_rela_forward(const GatedRelaParams& params, cudaStream_t stream) {
  RelaPlan p = make_plan(params);
  lay_out(p, false);
  // Uncut sequences have one state each, which key_sums stores in its place.
  if (!p.causal && !p.segments.is_cut && p.final_kv_state) p.key_states = std::exchange(p.final_kv_state, nullptr);
  if (p.num_units() == 0)
    return launch_sequence_check(p.sequences, stream, p.initial_position, p.rotary ? p.rotary_positions : 0);
  return dispatch_dtype(p.dtype, [&](auto element) {
    using E = decltype(element);
    RECGRELA_RETURN_IF_ERROR(find_key_states<E>(p, stream));
    return RelaKernels<E>::forward(p, stream);
  });
}

cudaError_t gated_rela_backward(const GatedRelaParams& params, cudaStream_t stream) {
  RelaPlan p = make_plan(params);
  lay_out(p, true);
  const bool has_key_states = p.saved_kv_state && !p.segments.is_cut;
  if (has_key_states) p.key_states = const_cast<float*>(p.saved_kv_state);
  return dispatch_dtype(p.dtype, [&](auto element) {
    using E = decltype(element);
    if (!has_key_states) RECGRELA_RETURN_IF_ERROR(find_key_states<E>(p, stream));
    RECGRELA_RETURN_IF_ERROR(find_query_states<E>(p, stream));
    RECGRELA_RETURN_IF_ERROR(RelaKernels<E>::backward(p, stream));
    if (p.kernel_size == 0) return cudaSuccess;
    const StoreConvGradients store{p.d_conv_weight, p.d_conv_bias, p.kernel_size};
    return add_partials<8>(p.conv_partials, p.segments.num_slots, p.width() * (kMaxKernelSize + 1), store, stream);
  });
}

}  // namespace recgrela::cuda
