// Host side of gated_rela_last.
//
// A forward launches one kernel, which checks the offsets, goes through all keys and values once and computes the
// wanted rows. A backward launches one kernel for all gradients, and a sum of the convolution's partial gradients. If
// sequences are cut into segments, one more kernel combines the sums over the segments of each sequence.
#include <algorithm>

#include "kernels/common/check.cuh"
#include "kernels/common/reduce.cuh"
#include "kernels/common/workspace.cuh"
#include "kernels/gated_rela_last/plan.cuh"

namespace recgrela::cuda {
namespace {

// Stores column [channel, k] of the gradients of the convolution: weight k, or the bias for k = K.
struct StoreConvGradients {
  float *d_weight, *d_bias;
  int kernel_size;

  __device__ void operator()(int64_t column, float sum) const {
    const int64_t channel = column / (kernel_size + 1);
    const int k = static_cast<int>(column % (kernel_size + 1));
    if (k == kernel_size)
      d_bias[channel] = sum;
    else
      d_weight[channel * kernel_size + k] = sum;
  }
};

LastPlan make_plan(const GatedRelaLastParams& params) {
  LastPlan p;
  static_cast<GatedRelaLastParams&>(p) = params;
  const Sequences& s = p.sequences;
  const int lanes = std::max(1, p.head_dim / static_cast<int>(16 / size_of(p.dtype)));  // of a head
  p.columns = static_cast<int>(ceil_div(p.num_heads, std::max(1, kLastThreads / lanes)));
  p.block_heads = static_cast<int>(ceil_div(p.num_heads, p.columns));
  p.row_slots = kLastThreads / (p.block_heads * lanes);
  int64_t segment_rows = p.segment_rows;
  if (segment_rows == 0) {
    // About 8 blocks per multiprocessor, but not for short segments, since the launch that combines segments costs as
    // much as some hundred rows. If uncut sequences keep the device busy, only much longer ones than the mean are cut.
    constexpr int64_t kMinRows = 256, kBlocks = 8;
    segment_rows = std::max(kMinRows, s.num_rows * p.columns / (kBlocks * multiprocessors()));
    if (s.num_sequences * p.columns >= kBlocks / 2 * multiprocessors())
      segment_rows = std::max(segment_rows, 4 * ceil_div(s.num_rows, s.num_sequences));
  }
  constexpr int64_t kMaxRows = 1 << 30;  // 32 bits hold the rows of a segment
  p.segments = plan_segments(s, std::min(segment_rows, kMaxRows));
  return p;
}

// Places the arrays of the plan in the workspace; returns its size.
size_t lay_out(LastPlan& p, bool backward) {
  Workspace workspace(p.workspace);
  const int64_t b = p.sequences.num_sequences, d = p.width();
  if (p.segments.is_cut) p.partials = workspace.take_floats(p.segments.num_slots * d * (backward ? 1 : 2));
  if (backward && p.kernel_size > 0) p.conv_partials = workspace.take_floats(b * d * (p.kernel_size + 1));
  return workspace.size();
}

bool supported(const GatedRelaLastParams& p) {
  return p.num_heads > 0 && int64_t{p.num_heads} * p.head_dim < (int64_t{1} << 26);
}

}  // namespace

size_t gated_rela_last_forward_workspace(const GatedRelaLastParams& params) {
  if (!supported(params)) return 0;
  LastPlan p = make_plan(params);
  return lay_out(p, false);
}

size_t gated_rela_last_backward_workspace(const GatedRelaLastParams& params) {
  if (!supported(params)) return 0;
  LastPlan p = make_plan(params);
  return lay_out(p, true);
}

cudaError_t gated_rela_last_forward(const GatedRelaLastParams& params, cudaStream_t stream) {
  if (!supported(params)) return cudaErrorInvalidValue;
  LastPlan p = make_plan(params);
  lay_out(p, false);
  if (p.sequences.num_sequences == 0) return launch_sequence_check(p.sequences, stream);
  return dispatch_dtype(p.dtype, [&](auto element) {
    using E = decltype(element);
    RECGRELA_RETURN_IF_ERROR(LastKernels<E>::forward(p, stream));
    return p.segments.is_cut ? LastKernels<E>::combine_forward(p, stream) : cudaSuccess;
  });
}

cudaError_t gated_rela_last_backward(const GatedRelaLastParams& params, cudaStream_t stream) {
  if (!supported(params)) return cudaErrorInvalidValue;
  LastPlan p = make_plan(params);
  lay_out(p, true);
  return dispatch_dtype(p.dtype, [&](auto element) {
    using E = decltype(element);
    RECGRELA_RETURN_IF_ERROR(LastKernels<E>::backward(p, stream));
    if (p.segments.is_cut) RECGRELA_RETURN_IF_ERROR(LastKernels<E>::combine_backward(p, stream));
    if (p.kernel_size == 0) return cudaSuccess;
    const StoreConvGradients store{p.d_conv_weight, p.d_conv_bias, p.kernel_size};
    return add_partials<8>(p.conv_partials, p.sequences.num_sequences, p.width() * int64_t{p.kernel_size + 1}, store,
                           stream);
  });
}

}  // namespace recgrela::cuda
