// Host side of linear_scan: h_i = a_i h_{i-1} + x_i in each channel of packed sequences, real or complex.
//
// A thread processes a group of adjacent channels of a segment row by row and loads the next rows ahead; a block
// processes up to 32 groups of several segments. A row of C complex numbers is a row of 2 C floats.
#include <algorithm>

#include "kernels/common/check.cuh"
#include "kernels/common/reduce.cuh"
#include "kernels/common/workspace.cuh"
#include "kernels/linear_scan/plan.cuh"

namespace recgrela::cuda {
namespace {

constexpr int kMaxGroups = 32;                  // per block
constexpr int64_t kMaxSharedCarries = 1 << 14;  // channels of sequences that several lanes each carry

// Replaces the final state from zero of each segment by the state that the segment starts from. carry_lanes lanes of a
// warp process one channel of a sequence, each a range of consecutive segments: a lane first combines its range into
// one product and one state, so that every lane can carry the initial state to its range.
template <bool kComplex, bool kReverse>
__global__ void __launch_bounds__(kScanThreads) scan_carry_states_kernel(const ScanPlan p) {
  constexpr int kBatch = 16, N = kComplex ? 2 : 1;
  struct SegmentSum {
    float state[N], product[N];
  };
  const int lane = static_cast<int>(threadIdx.x) % 32, warp_channels = 32 / p.carry_lanes;
  const int64_t warp = (int64_t{blockIdx.x} * kScanThreads + threadIdx.x) / 32;
  const int64_t number = warp * warp_channels + lane % warp_channels;
  const int64_t b = number / p.channels, channel = number % p.channels * N;
  const bool exists = b < p.sequences.num_sequences;
  const int64_t count = exists ? count_segments(p.segments, sequence_rows(p.sequences, b)) : 0;
  const int64_t range = (count + p.carry_lanes - 1) / p.carry_lanes, begin = lane / warp_channels * range;
  const int64_t end = min(count, begin + range);

  const int64_t slot = exists ? first_slot(p.segments, b) + (kReverse ? count - 1 - begin : begin) : 0;
  const int64_t stride = kReverse ? -p.width : p.width;
  float* states = p.states + slot * p.width + channel;
  const float* products = p.products + slot * p.width + channel;
  auto load = [&](int k, int64_t i) {
    SegmentSum sum;
    const int valid = begin + i + 1 < count && begin + i < end ? N : 0;  // the last segment in order has no sum
    load_each(states + k * stride, valid, sum.state);
    load_each(products + k * stride, valid, sum.product);
    return sum;
  };
  auto advance_batch = [&] { states += kBatch * stride, products += kBatch * stride; };

  const void* const initial = kReverse ? p.d_final_state : p.initial_state;
  float state[N];
  load_each(static_cast<const float*>(initial) + b * p.width + channel, exists && initial ? N : 0, state);
  if (p.carry_lanes > 1) {
    SegmentSum total;
#pragma unroll
    for (int c = 0; c < N; ++c) total.state[c] = 0.f, total.product[c] = c == 0 ? 1.f : 0.f;
    for_each_in_batches<kBatch>(
        end - begin, load,
        [&](int, int64_t, const SegmentSum& sum) {
          const float zero[N] = {};
          advance<kComplex, false>(sum.product, sum.state, total.state);
          advance<kComplex, false>(sum.product, zero, total.product);
        },
        advance_batch);
    for (int first = 0; first + warp_channels < 32; first += warp_channels) {
      SegmentSum sum;
#pragma unroll
      for (int c = 0; c < N; ++c) {
        sum.state[c] = __shfl_sync(0xffffffffu, total.state[c], first + lane % warp_channels);
        sum.product[c] = __shfl_sync(0xffffffffu, total.product[c], first + lane % warp_channels);
      }
      if (first + warp_channels <= lane) advance<kComplex, false>(sum.product, sum.state, state);
    }
    states = p.states + slot * p.width + channel;
    products = p.products + slot * p.width + channel;
  }
  if (count <= 1) return;
  for_each_in_batches<kBatch>(
      end - begin, load,
      [&](int k, int64_t, const SegmentSum& sum) {
#pragma unroll
        for (int c = 0; c < N; ++c) states[k * stride + c] = state[c];
        advance<kComplex, false>(sum.product, sum.state, state);
      },
      advance_batch);
}

bool supported(const LinearScanParams& p) {
  return p.channels < (int64_t{1} << 30) && !(p.complex && p.dtype != DType::kFloat32);
}

ScanPlan make_plan(const LinearScanParams& params) {
  ScanPlan p;
  static_cast<LinearScanParams&>(p) = params;
  const int64_t group = p.complex ? kScanGroup<true> : kScanGroup<false>;
  p.width = p.complex ? 2 * p.channels : p.channels;
  if (p.complex)
    for (RowMatrix* rows : {&p.x, &p.h, &p.a, &p.d_h, &p.d_x, &p.d_a}) rows->stride *= 2;
  p.aligned = true;
  for (const RowMatrix* rows : {&p.x, &p.h, &p.d_h, &p.d_x})
    p.aligned = p.aligned && is_aligned(*rows, p.dtype, group * size_of(p.dtype));
  if (p.per_step)
    for (const RowMatrix* rows : {&p.a, &p.d_a})
      p.aligned = p.aligned && is_aligned(*rows, DType::kFloat32, group * int64_t{sizeof(float)});
  p.groups = static_cast<int>(ceil_div(p.width, group));
  p.columns = std::max(1, static_cast<int>(ceil_div(p.groups, kMaxGroups)));
  p.block_groups = std::max(1, static_cast<int>(ceil_div(p.groups, p.columns)));
  p.runs = kScanThreads / p.block_groups;
  // Few sequences have few channels to carry, and many segments.
  p.carry_lanes = p.sequences.num_sequences * p.channels < kMaxSharedCarries ? 8 : 1;
  p.segments = plan_scan(p.sequences, p.groups, p.segment_rows, 1);
  p.row_blocks = ceil_div(p.segments.num_slots, p.runs);
  return p;
}

// Places the arrays of the plan in the workspace; returns its size.
size_t lay_out(ScanPlan& p, bool backward) {
  Workspace workspace(p.workspace);
  p.states = workspace.take_floats(p.segments.is_cut ? p.segments.num_slots * p.width : 0);
  p.products = workspace.take_floats(p.segments.is_cut ? p.segments.num_slots * p.width : 0);
  p.partials = workspace.take_floats(backward && !p.per_step ? p.row_blocks * p.width : 0);
  return workspace.size();
}

template <typename E, bool kComplex>
cudaError_t find_segment_states(ScanKernels<E, kComplex> kernels, const ScanPlan& p, bool reverse,
                                cudaStream_t stream) {
  if (!p.segments.is_cut) return cudaSuccess;
  RECGRELA_RETURN_IF_ERROR(kernels.sum_segments(p, reverse, stream));
  return launch(reverse ? scan_carry_states_kernel<kComplex, true> : scan_carry_states_kernel<kComplex, false>,
                ceil_div(p.sequences.num_sequences * p.channels * p.carry_lanes, kScanThreads), kScanThreads, 0, stream,
                p);
}

// Calls f(kernels) with the kernels of the plan's type.
template <typename F>
cudaError_t dispatch_kernels(const ScanPlan& p, F f) {
  if (p.complex) return f(ScanKernels<float, true>{});
  return dispatch_dtype(p.dtype, [&](auto element) { return f(ScanKernels<decltype(element), false>{}); });
}

}  // namespace

size_t linear_scan_forward_workspace(const LinearScanParams& params) {
  ScanPlan p = make_plan(params);
  return lay_out(p, false);
}

size_t linear_scan_backward_workspace(const LinearScanParams& params) {
  ScanPlan p = make_plan(params);
  return lay_out(p, true);
}

cudaError_t linear_scan_forward(const LinearScanParams& params, cudaStream_t stream) {
  if (!supported(params)) return cudaErrorInvalidValue;
  if (params.channels == 0 || params.sequences.num_sequences == 0)
    return launch_sequence_check(params.sequences, stream);
  ScanPlan p = make_plan(params);
  lay_out(p, false);
  return dispatch_kernels(p, [&](auto kernels) {
    RECGRELA_RETURN_IF_ERROR(find_segment_states(kernels, p, false, stream));
    return kernels.forward(p, stream);
  });
}

cudaError_t linear_scan_backward(const LinearScanParams& params, cudaStream_t stream) {
  if (!supported(params)) return cudaErrorInvalidValue;
  if (params.channels == 0) return cudaSuccess;
  ScanPlan p = make_plan(params);
  lay_out(p, true);
  return dispatch_kernels(p, [&](auto kernels) {
    RECGRELA_RETURN_IF_ERROR(find_segment_states(kernels, p, true, stream));
    RECGRELA_RETURN_IF_ERROR(kernels.backward(p, stream));
    if (p.per_step) return cudaSuccess;
    return add_partials(p.partials, p.row_blocks, p.width, StoreFloats{static_cast<float*>(p.d_a.data)}, stream);
  });
}

}  // namespace recgrela::cuda
