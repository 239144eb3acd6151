// Host side of selective_scan, and its kernels that do not depend on the element type.
#include <algorithm>

#include "kernels/common/activations.cuh"
#include "kernels/common/check.cuh"
#include "kernels/common/reduce.cuh"
#include "kernels/common/workspace.cuh"
#include "kernels/selective_scan/backward_shape.cuh"
#include "kernels/selective_scan/plan.cuh"

namespace recgrela::cuda {
namespace {

constexpr int kCarryThreads = 128;
constexpr int64_t kMaxSegmentRows = int64_t{1} << 28;  // the scans count bytes of a column in 32 bits
// Bounds the partial sums of d_A; a constant, so that sums have the same order on every device.
constexpr int64_t kMaxPersistentBlocks = 1024;

struct CarryArgs {
  SelectivePlan plan;
  int64_t sequence_blocks = 1;  // blocks per sequence; fewer if there are many sequences
};

// Replaces the final state from zero of each segment by the state that the segment starts from; kReverse does so for
// the gradient, from the last row to the first. Over a segment, a state decays by exp(A s), where s is the sum of the
// steps. A thread processes every n-th element of the state of a sequence.
template <bool kReverse>
__global__ void __launch_bounds__(kCarryThreads) selective_carry_states_kernel(const CarryArgs args) {
  constexpr int kBatch = 8;
  struct SegmentSum {
    float state, steps;
  };
  const SelectivePlan& p = args.plan;
  const int64_t b = blockIdx.x / args.sequence_blocks, block = blockIdx.x % args.sequence_blocks;
  const int64_t size = p.state_size(), count = count_segments(p.segments, sequence_rows(p.sequences, b));
  if (count <= 1) return;
  const int64_t first = first_slot(p.segments, b) + (kReverse ? count - 1 : 0);
  const int64_t state_stride = kReverse ? -size : size, steps_stride = kReverse ? -p.channels : p.channels;
  const float* const initial = kReverse ? p.d_final_state : p.initial_state;
  for (int64_t i = block * kCarryThreads + threadIdx.x; i < size; i += args.sequence_blocks * kCarryThreads) {
    float* states = p.segment_states + first * size + i;
    const float* steps = p.segment_steps + first * p.channels + i / p.num_states;
    const float a = p.A[i] * kLog2E;
    float state = initial ? initial[b * size + i] : 0.f;
    for_each_in_batches<kBatch>(
        count,
        [&](int k, int64_t index) {  // the last segment in order has no sum
          return index + 1 < count ? SegmentSum{states[k * state_stride], steps[k * steps_stride]} : SegmentSum{};
        },
        [&](int k, int64_t, const SegmentSum& sum) {
          states[k * state_stride] = state;
          state = fast_exp2(sum.steps * a) * state + sum.state;
        },
        [&] { states += kBatch * state_stride, steps += kBatch * steps_stride; });
  }
}

bool supported(const SelectiveScanParams& p) {
  for (const RowMatrix* rows : {&p.u, &p.delta, &p.z, &p.B, &p.C, &p.y, &p.d_y, &p.d_u, &p.d_delta, &p.d_z, &p.d_B,
                                &p.d_C})  // addresses are products of 32 bits
    if (p.sequences.num_rows > 1 && rows->stride > INT32_MAX) return false;
  const int64_t checkpoints = p.sequences.num_rows / p.kCheckpointRows + p.sequences.num_sequences;
  return p.num_states >= 1 && p.num_states <= p.kMaxStates && p.channels < (int64_t{1} << 25) &&
         checkpoints < INT32_MAX;
}

// Chooses the blocks of the backward.
void plan_backward(SelectivePlan& p) {
  dispatch_backward(p.num_states, [&](auto shape) {
    using Shape = decltype(shape);
    const int64_t warps = ceil_div(p.channels, Shape::kWarpChannels), columns = ceil_div(warps, Shape::kMaxWarps);
    const int block_warps = static_cast<int>(ceil_div(warps, std::max<int64_t>(1, columns)));
    p.backward_threads = 32 * block_warps, p.backward_channels = block_warps * Shape::kWarpChannels;
    p.backward_columns = static_cast<int>(columns);
    p.states_aligned = p.rows_aligned = true;
    for (const RowMatrix* rows : {&p.B, &p.C, &p.d_B, &p.d_C})
      p.states_aligned &= is_aligned(*rows, p.dtype, 4 * size_of(p.dtype));
    for (const RowMatrix* rows : {&p.u, &p.delta, &p.z, &p.d_y, &p.d_u, &p.d_delta, &p.d_z})
      p.rows_aligned &= is_aligned(*rows, p.dtype, std::min<int64_t>(16, Shape::kElements * size_of(p.dtype)));
    return cudaSuccess;
  });
  p.persistent_blocks = std::min(p.segments.num_slots, kMaxPersistentBlocks);
  p.launch_columns =
      static_cast<int>(std::clamp<int64_t>(2 * p.channels / p.num_states, 1, std::max(1, p.backward_columns)));
}

// Chooses the blocks of the forward and of the sums over segments.
ScanBlocks plan_scan_blocks(const SelectiveScanParams& p) {
  ScanBlocks blocks;
  blocks.states = p.num_states <= 8 ? 8 : 16;
  while (blocks.lanes * blocks.states < p.num_states) blocks.lanes *= 2;
  // A block loads whole rows of B and C.
  const int unit = std::max(32, blocks.lanes * blocks.states), max_threads = scan_threads(blocks.lanes);
  const int64_t min_columns = std::max<int64_t>(1, ceil_div(p.channels * blocks.lanes, max_threads));
  const int64_t threads = std::max<int64_t>(1, ceil_div(p.channels, min_columns)) * blocks.lanes;
  blocks.threads = static_cast<int>(ceil_div(threads, unit) * unit);
  blocks.channels = blocks.threads / blocks.lanes;
  blocks.columns = static_cast<int>(ceil_div(p.channels, blocks.channels));
  return blocks;
}

SelectivePlan make_plan(const SelectiveScanParams& params, bool backward) {
  SelectivePlan p;
  static_cast<SelectiveScanParams&>(p) = params;
  p.scan = plan_scan_blocks(params);
  p.segments = plan_scan(p.sequences, p.channels * p.scan.lanes, p.segment_rows, p.kCheckpointRows);
  if (p.segments.rows > kMaxSegmentRows) p.segments = plan_segments(p.sequences, kMaxSegmentRows);
  if (backward) plan_backward(p);
  return p;
}

// Places the arrays of the plan in the workspace; returns its size.
size_t lay_out(SelectivePlan& p, bool backward) {
  Workspace workspace(p.workspace);
  p.segment_states = workspace.take_floats(p.segments.is_cut ? p.segments.num_slots * p.state_size() : 0);
  p.segment_steps = workspace.take_floats(p.segments.is_cut ? p.segments.num_slots * p.channels : 0);
  if (!backward) return workspace.size();
  p.d_A_partials = workspace.take_floats(p.persistent_blocks * p.state_size());
  p.d_D_partials = workspace.take_floats(p.d_D ? p.persistent_blocks * p.channels : 0);
  p.d_bias_partials = workspace.take_floats(p.d_delta_bias ? p.persistent_blocks * p.channels : 0);
  if (p.backward_columns > 1) {
    const int64_t size = p.sequences.num_rows * 2 * p.num_states;
    p.row_partials = workspace.take_floats(p.launch_columns * size);
    if (p.launch_columns < p.backward_columns) p.row_sums = workspace.take_floats(size);
  }
  return workspace.size();
}

template <typename E>
cudaError_t find_segment_states(const SelectivePlan& p, bool reverse, cudaStream_t stream) {
  if (!p.segments.is_cut) return cudaSuccess;
  RECGRELA_RETURN_IF_ERROR(SelectiveKernels<E>::sum_segments(p, reverse, stream));
  CarryArgs args;
  args.plan = p;
  args.sequence_blocks = std::clamp<int64_t>(4 * multiprocessors() / p.sequences.num_sequences, 1,
                                             ceil_div(p.state_size(), kCarryThreads));
  return launch(reverse ? selective_carry_states_kernel<true> : selective_carry_states_kernel<false>,
                p.sequences.num_sequences * args.sequence_blocks, kCarryThreads, 0, stream, args);
}

cudaError_t add_block_partials(const SelectivePlan& p, const float* partials, int64_t size, float* sums,
                               cudaStream_t stream) {
  return sums ? add_partials(partials, p.persistent_blocks, size, StoreFloats{sums}, stream) : cudaSuccess;
}

}  // namespace

size_t selective_scan_forward_workspace(const SelectiveScanParams& params) {
  if (!supported(params)) return 0;
  SelectivePlan p = make_plan(params, false);
  return lay_out(p, false);
}

size_t selective_scan_backward_workspace(const SelectiveScanParams& params) {
  if (!supported(params)) return 0;
  SelectivePlan p = make_plan(params, true);
  return lay_out(p, true);
}

cudaError_t selective_scan_forward(const SelectiveScanParams& params, cudaStream_t stream) {
  if (!supported(params)) return cudaErrorInvalidValue;
  if (params.channels == 0 || params.sequences.num_sequences == 0)
    return launch_sequence_check(params.sequences, stream);
  SelectivePlan p = make_plan(params, false);
  lay_out(p, false);
  return dispatch_dtype(p.dtype, [&](auto element) {
    using E = decltype(element);
    RECGRELA_RETURN_IF_ERROR(find_segment_states<E>(p, false, stream));
    return SelectiveKernels<E>::forward(p, stream);
  });
}

cudaError_t selective_scan_backward(const SelectiveScanParams& params, cudaStream_t stream) {
  if (!supported(params)) return cudaErrorInvalidValue;
  SelectivePlan p = make_plan(params, true);
  lay_out(p, true);
  return dispatch_dtype(p.dtype, [&](auto element) {
    using E = decltype(element);
    if (p.backward_columns == 0) {  // no channels: d_B and d_C are zero
      p.launch_columns = 0;
      return SelectiveKernels<E>::add_row_partials(p, stream);
    }
    RECGRELA_RETURN_IF_ERROR(find_segment_states<E>(p, true, stream));
    for (const int max_columns = p.launch_columns; p.first_column < p.backward_columns; p.first_column += max_columns) {
      p.launch_columns = std::min(max_columns, p.backward_columns - p.first_column);
      RECGRELA_RETURN_IF_ERROR(SelectiveKernels<E>::backward(p, stream));
      if (p.row_partials) RECGRELA_RETURN_IF_ERROR(SelectiveKernels<E>::add_row_partials(p, stream));
    }
    RECGRELA_RETURN_IF_ERROR(add_block_partials(p, p.d_A_partials, p.state_size(), p.d_A, stream));
    RECGRELA_RETURN_IF_ERROR(add_block_partials(p, p.d_D_partials, p.channels, p.d_D, stream));
    return add_block_partials(p, p.d_bias_partials, p.channels, p.d_delta_bias, stream);
  });
}

}  // namespace recgrela::cuda
