// The host side of selective_scan, and its kernels that do not depend on the element type.
#include <algorithm>

#include "kernels/selective_scan/team.cuh"

namespace recgrela::cuda {
namespace {

constexpr int kCarryThreads = 128;
constexpr int64_t kMaxPersistentBlocks =
    1024;  // bounds the parts of dA; fixed, so that sums have one order on every device

struct CarryArgs {
  SelectivePlan plan;
  int64_t parts = 1;  // blocks to a sequence: few where there are many sequences, which then are seldom cut
};

// Leaves at each segment the state that it begins from: of h, or of the gradient from the last row to the first. What
// is left of a state behind a segment is exp(A (the sum of its steps)). A thread takes states of a sequence in turn.
template <bool kReverse>
__global__ void __launch_bounds__(kCarryThreads) carry_selective_states(const CarryArgs args) {
  constexpr int kAtATime = 8;
  const SelectivePlan& p = args.plan;
  const int64_t b = blockIdx.x / args.parts, part = blockIdx.x % args.parts, size = p.state_size();
  const int64_t count = segments_of(p.segments, sequence_rows(p.sequences, b));
  if (count <= 1) return;
  const int64_t first = first_slot(p.segments, b) + (kReverse ? count - 1 : 0), direction = kReverse ? -1 : 1;
  const float* const initial = kReverse ? p.d_final_state : p.initial_state;
  for (int64_t place = part * kCarryThreads + threadIdx.x; place < size; place += args.parts * kCarryThreads) {
    float* states = p.segment_states + first * size + place;
    const float* steps = p.segment_steps + first * p.channels + place / p.num_states;
    const float a = p.A[place] * kLog2E;
    float state = initial ? initial[b * size + place] : 0.f;
    for (int64_t i = 0; i < count; i += kAtATime) {
      float sum[kAtATime], step[kAtATime];
#pragma unroll
      for (int k = 0; k < kAtATime; ++k) {  // the last one in order has none
        sum[k] = i + k + 1 < count ? states[k * direction * size] : 0.f;
        step[k] = i + k + 1 < count ? steps[k * direction * p.channels] : 0.f;
      }
#pragma unroll
      for (int k = 0; k < kAtATime; ++k) {
        if (i + k < count) states[k * direction * size] = state;
        state = fast_exp2(step[k] * a) * state + sum[k];
      }
      states += kAtATime * direction * size, steps += kAtATime * direction * p.channels;
    }
  }
}

bool supported(const SelectiveScanParams& p) {
  const int64_t kept = p.sequences.num_rows / p.kCheckpointRows + p.sequences.num_sequences;
  return p.num_states >= 1 && p.num_states <= p.kMaxStates && p.channels < (int64_t{1} << 25) && kept < INT32_MAX;
}

SelectivePlan make_plan(const SelectiveScanParams& params, bool backward) {
  SelectivePlan p;
  static_cast<SelectiveScanParams&>(p) = params;
  int lanes = 1;
  with_lanes(p.num_states, [&](auto count) { return lanes = count, cudaSuccess; });
  const int most = backward ? kBackwardThreads : kForwardThreads;
  const int64_t least_columns = std::max<int64_t>(1, ceil_div(p.channels * lanes, most));
  p.threads = static_cast<int>(ceil_div(ceil_div(p.channels, least_columns) * lanes, 32) * 32);
  p.threads = std::max(p.threads, 32);
  p.block_channels = p.threads / lanes;
  p.columns = static_cast<int>(ceil_div(p.channels, p.block_channels));
  p.segments = plan_segments(p.sequences, p.channels * lanes, p.segment_rows, p.kCheckpointRows);
  p.persistent_blocks = std::min(p.segments.slots, kMaxPersistentBlocks);
  p.launch_columns = static_cast<int>(std::clamp<int64_t>(2 * p.channels / p.num_states, 1, std::max(1, p.columns)));
  return p;
}

// Lays the plan's arrays out in the workspace; returns their size.
size_t lay_out(SelectivePlan& p, bool backward) {
  Workspace workspace{p.workspace};
  p.segment_states = workspace.take(p.segments.cut ? p.segments.slots * p.state_size() : 0);
  p.segment_steps = workspace.take(p.segments.cut ? p.segments.slots * p.channels : 0);
  if (!backward) return workspace.used;
  p.A_parts = workspace.take(p.persistent_blocks * p.state_size());
  p.D_parts = workspace.take(p.d_D ? p.persistent_blocks * p.channels : 0);
  p.bias_parts = workspace.take(p.d_delta_bias ? p.persistent_blocks * p.channels : 0);
  if (p.columns > 1) {
    const int64_t size = p.sequences.num_rows * 2 * p.num_states;
    p.row_parts = workspace.take(p.launch_columns * size);
    if (p.launch_columns < p.columns) p.row_sums = workspace.take(size);
  }
  return workspace.used;
}

template <typename F>
cudaError_t with_kernels(DType dtype, F f) {
  switch (dtype) {
    case DType::kFloat32:
      return f(SelectiveKernels<float>{});
    case DType::kFloat16:
      return f(SelectiveKernels<fp16>{});
    case DType::kBFloat16:
      return f(SelectiveKernels<bf16>{});
  }
  return cudaErrorInvalidValue;
}

#define RECGRELA_RETURN_IF(call)            \
  do {                                      \
    const cudaError_t error = (call);       \
    if (error != cudaSuccess) return error; \
  } while (false)

template <typename Kernels>
cudaError_t find_segment_states(Kernels kernels, const SelectivePlan& p, bool reverse, cudaStream_t stream) {
  if (!p.segments.cut) return cudaSuccess;
  RECGRELA_RETURN_IF(kernels.sum_segments(p, reverse, stream));
  CarryArgs args;
  args.plan = p;
  args.parts = std::clamp<int64_t>(4 * multiprocessors() / p.sequences.num_sequences, 1,
                                   ceil_div(p.state_size(), kCarryThreads));
  return launch(reverse ? carry_selective_states<true> : carry_selective_states<false>,
                p.sequences.num_sequences * args.parts, kCarryThreads, 0, stream, args);
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
  RECGRELA_RETURN_IF(check_sequences(params.sequences, nullptr, 0, stream));
  if (params.channels == 0) return cudaSuccess;
  SelectivePlan p = make_plan(params, false);
  lay_out(p, false);
  return with_kernels(p.dtype, [&](auto kernels) {
    RECGRELA_RETURN_IF(find_segment_states(kernels, p, false, stream));
    return kernels.forward(p, stream);
  });
}

cudaError_t selective_scan_backward(const SelectiveScanParams& params, cudaStream_t stream) {
  if (!supported(params)) return cudaErrorInvalidValue;
  SelectivePlan p = make_plan(params, true);
  lay_out(p, true);
  return with_kernels(p.dtype, [&](auto kernels) {
    if (p.columns == 0) {  // no channels: zeros
      p.launch_columns = 0;
      return kernels.add_rows(p, stream);
    }
    RECGRELA_RETURN_IF(find_segment_states(kernels, p, true, stream));
    for (const int most = p.launch_columns; p.first_column < p.columns; p.first_column += most) {
      p.launch_columns = std::min(most, p.columns - p.first_column);
      RECGRELA_RETURN_IF(kernels.backward(p, stream));
      if (p.row_parts) RECGRELA_RETURN_IF(kernels.add_rows(p, stream));
    }
    RECGRELA_RETURN_IF(add_parts(p.A_parts, p.persistent_blocks, p.state_size(), p.d_A, stream));
    if (p.d_D) RECGRELA_RETURN_IF(add_parts(p.D_parts, p.persistent_blocks, p.channels, p.d_D, stream));
    return p.d_delta_bias ? add_parts(p.bias_parts, p.persistent_blocks, p.channels, p.d_delta_bias, stream)
                          : cudaSuccess;
  });
}

}  // namespace recgrela::cuda
