// Host side of causal_conv1d: a depthwise causal convolution with bias and SiLU over packed rows.
//
// Rows are divided into runs regardless of sequences, and a thread processes one group of adjacent channels of a run. A
// block processes consecutive runs of up to 32 groups and finds where sequences begin and end among its rows. Many
// short sequences and few long ones thus take the same time, and each row is read in whole cache lines.
#include <algorithm>

#include "kernels/causal_conv1d/plan.cuh"
#include "kernels/common/check.cuh"
#include "kernels/common/reduce.cuh"
#include "kernels/common/sequences.cuh"
#include "kernels/common/workspace.cuh"

namespace recgrela::cuda {
namespace {

constexpr int kMaxGroups = 32;       // of channels, per block
constexpr int kMaxBlockRows = 2048;  // bounds the boundaries in shared memory

// Stores column [k, channel] of the gradients: weight k of the channel, or its bias for k = K.
struct StoreWeightGradients {
  float *d_weight, *d_bias;
  int64_t channels;
  int kernel_size;

  __device__ void operator()(int64_t column, float sum) const {
    const int64_t k = column / channels, channel = column % channels;
    if (k < kernel_size) {
      d_weight[channel * kernel_size + k] = sum;
    } else if (d_bias) {
      d_bias[channel] = sum;
    }
  }
};

ConvPlan make_plan(const CausalConv1dParams& params, bool backward) {
  ConvPlan p;
  static_cast<CausalConv1dParams&>(p) = params;
  p.whole = p.channels % kConvGroup == 0;
  for (const RowMatrix* rows : {&p.x, &p.y, &p.d_y, &p.d_x})
    p.whole = p.whole && is_aligned(*rows, p.dtype, kConvGroup * size_of(p.dtype));
  for (const void* history : {p.initial_history, p.d_final_history})
    p.whole = p.whole && reinterpret_cast<uintptr_t>(history) % (kConvGroup * size_of(p.dtype)) == 0;
  p.groups = static_cast<int>(ceil_div(p.channels, kConvGroup));
  p.columns = static_cast<int>(ceil_div(p.groups, kMaxGroups));
  p.block_groups = static_cast<int>(ceil_div(p.groups, p.columns));
  p.runs = kConvThreads / p.block_groups;
  // All blocks run at a time and end together: each starts with a search, and a run reads the rows before it again.
  // More rows than their shared memory has room for take several such rounds.
  const int64_t blocks = int64_t{backward ? kBackwardBlocks : kForwardBlocks} * multiprocessors();
  const int64_t runs = std::max<int64_t>(1, blocks / p.columns) * p.runs, max_rows = kMaxBlockRows / p.runs;
  const int64_t rounds = std::max<int64_t>(1, ceil_div(p.sequences.num_rows, runs * max_rows));
  constexpr int64_t kUnit = RECGRELA_CAUSAL_CONV1D_ROWS;
  const int64_t rows = ceil_div(ceil_div(p.sequences.num_rows, runs * rounds), kUnit) * kUnit;
  p.run_rows = static_cast<int>(std::max(rows, kUnit));
  p.row_blocks = ceil_div(p.sequences.num_rows, int64_t{p.runs} * p.run_rows);
  return p;
}

// Places the partial sums of the backward in the workspace; returns its size.
size_t lay_out(ConvPlan& p) {
  Workspace workspace(p.workspace);
  p.partials = workspace.take_floats(p.row_blocks * (p.kernel_size + 1) * p.channels);
  return workspace.size();
}

bool supported(const CausalConv1dParams& p) {
  return p.kernel_size >= 1 && p.kernel_size <= p.kMaxKernelSize && p.channels < (int64_t{1} << 31) &&
         p.sequences.num_sequences < (int64_t{1} << 31) - 1;
}

}  // namespace

size_t causal_conv1d_backward_workspace(const CausalConv1dParams& params) {
  if (!supported(params) || params.channels == 0) return 0;
  ConvPlan p = make_plan(params, true);
  return lay_out(p);
}

cudaError_t causal_conv1d_forward(const CausalConv1dParams& params, cudaStream_t stream) {
  if (!supported(params)) return cudaErrorInvalidValue;
  if (params.channels == 0 || params.sequences.num_rows == 0)
    RECGRELA_RETURN_IF_ERROR(launch_sequence_check(params.sequences, stream));
  if (params.channels == 0) return cudaSuccess;
  const ConvPlan p = make_plan(params, false);
  return dispatch_dtype(p.dtype, [&](auto element) {
    using E = decltype(element);
    RECGRELA_RETURN_IF_ERROR(ConvKernels<E>::forward(p, stream));
    return p.final_history && p.kernel_size > 1 ? ConvKernels<E>::final_history(p, stream) : cudaSuccess;
  });
}

cudaError_t causal_conv1d_backward(const CausalConv1dParams& params, cudaStream_t stream) {
  if (!supported(params)) return cudaErrorInvalidValue;
  if (params.channels == 0) return cudaSuccess;
  ConvPlan p = make_plan(params, true);
  lay_out(p);
  return dispatch_dtype(p.dtype, [&](auto element) {
    using E = decltype(element);
    RECGRELA_RETURN_IF_ERROR(ConvKernels<E>::backward(p, stream));
    const StoreWeightGradients store{p.d_weight, p.d_bias, p.channels, p.kernel_size};
    RECGRELA_RETURN_IF_ERROR(
        add_partials<8>(p.partials, p.row_blocks, (p.kernel_size + 1) * p.channels, store, stream));
    return p.d_initial_history && p.kernel_size > 1 ? ConvKernels<E>::d_initial_history(p, stream) : cudaSuccess;
  });
}

}  // namespace recgrela::cuda
