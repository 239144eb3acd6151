// linear_scan: h_i = a_i h_{i-1} + x_i in each channel of packed sequences, real or complex.
//
// A thread takes a group of neighbouring channels of a segment and goes through its rows with the next ones loaded
// ahead; a block takes the segments of up to 32 groups. Complex numbers are two floats side by side, so a row of
// complex channels is one of twice as many floats.
//
// The backward carries k_i = conj(a_i) g_i, of g_i = d_h_i + k_{i+1}, from the last row to the first: then d_x_i = g_i,
// d_a_i = g_i conj(h_{i-1}), and k of the first row is the gradient of the state before it.
#include <algorithm>

#include "kernels/common/segments.cuh"
#include "kernels/linear_scan/params.h"

namespace recgrela::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kMaxGroups = 32;  // of channels, to a block
constexpr int kAhead = 8;       // rows

// Numbers of a group: 8 bytes of x.
template <typename E>
constexpr int kGroup = 8 / sizeof(E);

struct ScanArgs {
  LinearScanParams p;  // strides in floats
  SegmentPlan segments;
  int64_t width;     // floats of a row
  int groups;        // of channels
  int columns;       // blocks side by side that cover the groups
  int block_groups;  // groups of a block
  int runs;          // segments of a block
  int64_t row_blocks;
  bool aligned;     // each row of all matrices begins where a group can be loaded at once
  float* states;    // [slots, width]: what a segment comes to from zero, then the state that it begins from
  float* products;  // [slots, width] of the segments' coefficients
  float* partial;   // [row blocks, width] of the gradient of coefficients that are the same in every row
};

// state = a state + x, or with the conjugate of a.
template <bool kComplex, bool kConjugate, int N>
__device__ void step(const float (&a)[N], const float (&x)[N], float (&state)[N]) {
  if constexpr (kComplex) {
#pragma unroll
    for (int i = 0; i < N; i += 2) {
      const float re = state[i], im = state[i + 1], a_im = kConjugate ? -a[i + 1] : a[i + 1];
      state[i] = a[i] * re + (x[i] - a_im * im);
      state[i + 1] = a[i] * im + (x[i + 1] + a_im * re);
    }
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) state[i] = a[i] * state[i] + x[i];
  }
}

// sum += g conj(h)
template <bool kComplex, int N>
__device__ void add_product(const float (&g)[N], const float (&h)[N], float (&sum)[N]) {
  if constexpr (kComplex) {
#pragma unroll
    for (int i = 0; i < N; i += 2) {
      sum[i] += g[i] * h[i] + g[i + 1] * h[i + 1];
      sum[i + 1] += g[i + 1] * h[i] - g[i] * h[i + 1];
    }
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) sum[i] += g[i] * h[i];
  }
}

// What a thread works on.
template <typename E>
struct Work {
  static constexpr int N = kGroup<E>;
  ScanSegment segment;  // the same for the threads of a run
  bool there;           // false for a thread without work
  int64_t row_block;
  int64_t channel;  // the first of the group, in floats
  int valid;        // how many of the group's N floats there are
  bool whole;       // they are N, and aligned in every row

  // For all threads of a block.
  __device__ explicit Work(const ScanArgs& a) {
    ScanSegment* const found = reinterpret_cast<ScanSegment*>(dynamic_shared());
    row_block = blockIdx.x / a.columns;
    for (int run = threadIdx.x / 32; run < a.runs; run += kThreads / 32) {
      const int64_t slot = row_block * a.runs + run;
      if (slot >= a.segments.slots) break;
      const ScanSegment s = find_segment(a.segments, slot);
      if (threadIdx.x % 32 == 0) found[run] = s;
    }
    __syncthreads();
    const int run = static_cast<int>(threadIdx.x) / a.block_groups;
    const int group =
        static_cast<int>(blockIdx.x % a.columns) * a.block_groups + static_cast<int>(threadIdx.x) % a.block_groups;
    channel = int64_t{group} * N;
    valid = a.width - channel < N ? static_cast<int>(a.width - channel) : N;
    whole = a.aligned && valid == N;
    there = run < a.runs && group < a.groups && row_block * a.runs + run < a.segments.slots;
    segment = found[there ? run : 0];
    there = there && segment.taken();
  }

  template <typename T>
  __device__ Packed<T, N> load(const RowMatrix& rows, int64_t row, bool wanted) const {
    if (!wanted) return {};
    const T* const from = static_cast<const T*>(rows.data) + row * rows.stride + channel;
    if (whole) return *reinterpret_cast<const Packed<T, N>*>(from);
    float values[N];
    load_each(from, valid, values);
    return pack<T>(values);
  }
  template <typename T>
  __device__ void store(const RowMatrix& rows, int64_t row, const float (&values)[N]) const {
    store_row(static_cast<T*>(rows.data) + row * rows.stride + channel, valid, whole, values);
  }
  // Of a row of `width` floats side by side; zeros where there are none.
  __device__ void load_state(const void* states, int64_t row, int64_t width, float (&state)[N]) const {
    load_each(static_cast<const float*>(states) + row * width + channel, states ? valid : 0, state);
  }
  __device__ void store_state(void* states, int64_t row, int64_t width, const float (&state)[N]) const {
    store_row(static_cast<float*>(states) + row * width + channel, valid, false, state);
  }

  // Calls use(row, what load(row, true) returned) for the segment's rows, from the last one if kReverse.
  template <bool kReverse, typename Load, typename Use>
  __device__ void walk(Load load, Use use) const {
    const int64_t count = segment.end - segment.begin;
    auto row_of = [&](int64_t i) { return kReverse ? segment.end - 1 - i : segment.begin + i; };
    decltype(load(int64_t{0}, true)) ahead[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) ahead[i] = load(row_of(i), i < count);
#pragma unroll 1
    for (int64_t first = 0; first < count; first += kAhead) {
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        const int64_t at = first + i;
        if (at < count) use(row_of(at), ahead[i]);
        ahead[i] = load(row_of(at + kAhead), at + kAhead < count);
      }
    }
  }
};

template <typename E>
struct Loaded {
  Packed<E, kGroup<E>> x, h;
  Packed<float, kGroup<E>> a;
};

// The coefficients of every row: once, or each with its row.
template <typename E, bool kPerStep>
struct Coefficients {
  static constexpr int N = kGroup<E>;
  float a[N];

  __device__ Coefficients(const ScanArgs& args, const Work<E>& work) {
    if constexpr (!kPerStep) work.load_state(args.p.a.data, 0, args.width, a);
  }
  __device__ void load(const ScanArgs& args, const Work<E>& work, int64_t row, bool wanted, Loaded<E>& to) const {
    if constexpr (kPerStep) to.a = work.template load<float>(args.p.a, row, wanted);
  }
  __device__ void next(const Loaded<E>& from) {
    if constexpr (kPerStep) unpack(from.a, a);
  }
};

// What each segment but the last one in order comes to from zero, and the product of its coefficients.
template <typename E, bool kComplex, bool kPerStep, bool kReverse>
__global__ void __launch_bounds__(kThreads, 2) sum_segments(const ScanArgs args) {
  constexpr int N = kGroup<E>;
  const Work<E> work(args);
  if (!work.there || (kReverse ? work.segment.first() : work.segment.last())) return;
  const RowMatrix& rows = kReverse ? args.p.d_h : args.p.x;
  Coefficients<E, kPerStep> step_by(args, work);
  const float zero[N] = {};
  float state[N] = {}, product[N];
#pragma unroll
  for (int i = 0; i < N; ++i) product[i] = kComplex && i % 2 ? 0.f : 1.f;
  work.template walk<kReverse>(
      [&](int64_t row, bool wanted) {
        Loaded<E> loaded{};
        loaded.x = work.template load<E>(rows, row, wanted);
        step_by.load(args, work, row, wanted, loaded);
        return loaded;
      },
      [&](int64_t, const Loaded<E>& loaded) {
        float x[N];
        unpack(loaded.x, x);
        step_by.next(loaded);
        if constexpr (kReverse) {
#pragma unroll
          for (int i = 0; i < N; ++i) state[i] += x[i];
          step<kComplex, true>(step_by.a, zero, state);
        } else {
          step<kComplex, false>(step_by.a, x, state);
        }
        step<kComplex, kReverse>(step_by.a, zero, product);
      });
  work.store_state(args.states, work.segment.slot, args.width, state);
  work.store_state(args.products, work.segment.slot, args.width, product);
}

// Leaves at each segment the state that it begins from. A thread takes one channel of a sequence.
template <bool kComplex, bool kReverse>
__global__ void __launch_bounds__(kThreads) carry_states(const ScanArgs args) {
  constexpr int kAtATime = 8, N = kComplex ? 2 : 1;
  const int64_t number = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const int64_t b = number / args.p.channels, channel = number % args.p.channels * N;
  if (b >= args.segments.sequences.num_sequences) return;
  const int64_t count = segments_of(args.segments, sequence_rows(args.segments.sequences, b));
  if (count <= 1) return;
  const int64_t first = first_slot(args.segments, b) + (kReverse ? count - 1 : 0);
  const int64_t stride = kReverse ? -args.width : args.width;
  float* states = args.states + first * args.width + channel;
  const float* products = args.products + first * args.width + channel;
  const void* const initial = kReverse ? args.p.d_final_state : args.p.initial_state;
  float state[N];
  load_each(static_cast<const float*>(initial) + b * args.width + channel, initial ? N : 0, state);
  for (int64_t i = 0; i < count; i += kAtATime, states += kAtATime * stride, products += kAtATime * stride) {
    float sum[kAtATime][N], product[kAtATime][N];
#pragma unroll
    for (int k = 0; k < kAtATime; ++k) {  // the last one in order has none
      load_each(states + k * stride, i + k + 1 < count ? N : 0, sum[k]);
      load_each(products + k * stride, i + k + 1 < count ? N : 0, product[k]);
    }
#pragma unroll
    for (int k = 0; k < kAtATime; ++k) {
      if (i + k < count) {
#pragma unroll
        for (int c = 0; c < N; ++c) states[k * stride + c] = state[c];
      }
      step<kComplex, false>(product[k], sum[k], state);
    }
  }
}

template <typename E, bool kComplex, bool kPerStep>
__global__ void __launch_bounds__(kThreads, 2) scan_forward(const ScanArgs args) {
  constexpr int N = kGroup<E>;
  const LinearScanParams& p = args.p;
  const Work<E> work(args);
  if (!work.there) return;
  const ScanSegment& segment = work.segment;
  Coefficients<E, kPerStep> step_by(args, work);
  float state[N];
  if (segment.count > 1) {
    work.load_state(args.states, segment.slot, args.width, state);
  } else {
    work.load_state(p.initial_state, segment.sequence, args.width, state);
  }
  work.template walk<false>(
      [&](int64_t row, bool wanted) {
        Loaded<E> loaded{};
        loaded.x = work.template load<E>(p.x, row, wanted);
        step_by.load(args, work, row, wanted, loaded);
        return loaded;
      },
      [&](int64_t row, const Loaded<E>& loaded) {
        float x[N];
        unpack(loaded.x, x);
        step_by.next(loaded);
        step<kComplex, false>(step_by.a, x, state);
        work.template store<E>(p.h, row, state);
      });
  if (segment.last() && p.final_state) work.store_state(p.final_state, segment.sequence, args.width, state);
}

template <typename E, bool kComplex, bool kPerStep>
__global__ void __launch_bounds__(kThreads, 2) scan_backward(const ScanArgs args) {
  constexpr int N = kGroup<E>;
  const LinearScanParams& p = args.p;
  const Work<E> work(args);
  float d_a[N] = {};
  if (work.there) {
    const ScanSegment& segment = work.segment;
    Coefficients<E, kPerStep> step_by(args, work);
    const int64_t row0 = segment.first() ? segment.begin : -1;  // the sequence's first row, if it is in the segment
    const float zero[N] = {};
    float carried[N];
    if (segment.count > 1) {
      work.load_state(args.states, segment.slot, args.width, carried);
    } else {
      work.load_state(p.d_final_state, segment.sequence, args.width, carried);
    }
    work.template walk<true>(
        [&](int64_t row, bool wanted) {
          Loaded<E> loaded{};
          loaded.x = work.template load<E>(p.d_h, row, wanted);
          loaded.h = work.template load<E>(p.h, row - 1, wanted && row != row0);
          step_by.load(args, work, row, wanted, loaded);
          return loaded;
        },
        [&](int64_t row, const Loaded<E>& loaded) {
          float grad[N], before[N];
          unpack(loaded.x, grad);
#pragma unroll
          for (int i = 0; i < N; ++i) grad[i] += carried[i];
          work.template store<E>(p.d_x, row, grad);
          if (row == row0) {
            work.load_state(p.initial_state, segment.sequence, args.width, before);
          } else {
            unpack(loaded.h, before);
          }
          step_by.next(loaded);
          if constexpr (kPerStep) {
            float product[N] = {};
            add_product<kComplex>(grad, before, product);
            work.template store<float>(p.d_a, row, product);
          } else {
            add_product<kComplex>(grad, before, d_a);
          }
#pragma unroll
          for (int i = 0; i < N; ++i) carried[i] = grad[i];
          step<kComplex, true>(step_by.a, zero, carried);
        });
    if (segment.first() && p.d_initial_state)
      work.store_state(p.d_initial_state, segment.sequence, args.width, carried);
  }
  if constexpr (!kPerStep) {                                         // the sums of the runs, added in their order
    __syncthreads();                                                 // the segments have been read
    float* const sums = reinterpret_cast<float*>(dynamic_shared());  // [N, thread]
#pragma unroll
    for (int i = 0; i < N; ++i) sums[i * kThreads + threadIdx.x] = d_a[i];
    __syncthreads();
    const int64_t first = int64_t{blockIdx.x % args.columns} * args.block_groups;
    for (int i = threadIdx.x; i < N * args.block_groups; i += kThreads) {
      const int group = i / N;
      const int64_t channel = (first + group) * N + i % N;
      if (channel >= args.width) continue;
      float sum = 0.f;
      for (int run = 0; run < args.runs; ++run) sum += sums[i % N * kThreads + run * args.block_groups + group];
      args.partial[work.row_block * args.width + channel] = sum;
    }
  }
}

bool supported(const LinearScanParams& p) {
  return p.channels < (int64_t{1} << 30) && !(p.complex && p.dtype != DType::kFloat32);
}

ScanArgs make_plan(const LinearScanParams& params) {
  ScanArgs a;
  a.p = params;
  LinearScanParams& p = a.p;
  const int64_t size = p.dtype == DType::kFloat32 ? 4 : 2, group = 8 / size;
  a.width = p.complex ? 2 * p.channels : p.channels;
  if (p.complex)
    for (RowMatrix* rows : {&p.x, &p.h, &p.a, &p.d_h, &p.d_x, &p.d_a}) rows->stride *= 2;
  a.aligned = true;
  for (const RowMatrix* rows : {&p.x, &p.h, &p.d_h, &p.d_x})
    a.aligned = a.aligned && is_aligned(*rows, size, group * size);
  if (p.per_step)
    for (const RowMatrix* rows : {&p.a, &p.d_a}) a.aligned = a.aligned && is_aligned(*rows, 4, group * 4);
  a.groups = static_cast<int>(ceil_div(a.width, group));
  a.columns = std::max(1, static_cast<int>(ceil_div(a.groups, kMaxGroups)));
  a.block_groups = std::max(1, static_cast<int>(ceil_div(a.groups, a.columns)));
  a.runs = kThreads / a.block_groups;
  a.segments = plan_segments(p.sequences, a.groups, p.segment_rows, 1);
  a.row_blocks = ceil_div(a.segments.slots, a.runs);
  return a;
}

// Lays the plan's arrays out in the workspace; returns their size.
size_t lay_out(ScanArgs& a, bool backward) {
  Workspace workspace{a.p.workspace};
  a.states = workspace.take(a.segments.cut ? a.segments.slots * a.width : 0);
  a.products = workspace.take(a.segments.cut ? a.segments.slots * a.width : 0);
  a.partial = workspace.take(backward && !a.p.per_step ? a.row_blocks * a.width : 0);
  return workspace.used;
}

template <typename E, bool kComplex, bool kPerStep>
cudaError_t run(const ScanArgs& a, bool backward, cudaStream_t stream) {
  auto start = [&](void (*kernel)(ScanArgs)) {
    const size_t found = sizeof(ScanSegment) * a.runs, sums = sizeof(float) * kGroup<E> * kThreads;
    return launch(kernel, a.row_blocks * a.columns, kThreads, std::max(found, sums), stream, a);
  };
  if (a.segments.cut) {
    cudaError_t error =
        start(backward ? sum_segments<E, kComplex, kPerStep, true> : sum_segments<E, kComplex, kPerStep, false>);
    if (error != cudaSuccess) return error;
    error = launch(backward ? carry_states<kComplex, true> : carry_states<kComplex, false>,
                   ceil_div(a.p.sequences.num_sequences * a.p.channels, kThreads), kThreads, 0, stream, a);
    if (error != cudaSuccess) return error;
  }
  if (!backward) return start(scan_forward<E, kComplex, kPerStep>);
  const cudaError_t error = start(scan_backward<E, kComplex, kPerStep>);
  if (error != cudaSuccess || kPerStep) return error;
  return add_parts(a.partial, a.row_blocks, a.width, static_cast<float*>(a.p.d_a.data), stream);
}

template <typename E, bool kComplex>
cudaError_t run(const ScanArgs& a, bool backward, cudaStream_t stream) {
  return a.p.per_step ? run<E, kComplex, true>(a, backward, stream) : run<E, kComplex, false>(a, backward, stream);
}

cudaError_t run(const LinearScanParams& p, bool backward, cudaStream_t stream) {
  if (p.channels == 0) return cudaSuccess;
  ScanArgs a = make_plan(p);
  lay_out(a, backward);
  switch (p.dtype) {
    case DType::kFloat32:
      return p.complex ? run<float, true>(a, backward, stream) : run<float, false>(a, backward, stream);
    case DType::kFloat16:
      return run<fp16, false>(a, backward, stream);
    case DType::kBFloat16:
      return run<bf16, false>(a, backward, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace

size_t linear_scan_forward_workspace(const LinearScanParams& p) {
  ScanArgs a = make_plan(p);
  return lay_out(a, false);
}

size_t linear_scan_backward_workspace(const LinearScanParams& p) {
  ScanArgs a = make_plan(p);
  return lay_out(a, true);
}

cudaError_t linear_scan_forward(const LinearScanParams& p, cudaStream_t stream) {
  if (!supported(p)) return cudaErrorInvalidValue;
  const cudaError_t error = check_sequences(p.sequences, nullptr, 0, stream);
  return error == cudaSuccess ? run(p, false, stream) : error;
}

cudaError_t linear_scan_backward(const LinearScanParams& p, cudaStream_t stream) {
  return supported(p) ? run(p, true, stream) : cudaErrorInvalidValue;
}

}  // namespace recgrela::cuda
