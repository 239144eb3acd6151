// causal_conv1d: a depthwise causal convolution with bias and SiLU over packed rows.
//
// The rows are cut into runs without regard to sequences. A thread takes a run of one group of neighbouring channels
// and goes through it row by row with the last K - 1 rows in registers; a block takes the runs of up to 32 groups that
// lie one below the other, and notes in shared memory where in its rows a sequence begins or ends. So many short
// sequences and few long ones are the same work, and each row is read by whole cache lines.
#include "kernels/common/device.cuh"
#include "kernels/common/packed.cuh"
#include "kernels/causal_conv1d/params.h"
#include "kernels/common/sequences.cuh"

#include <algorithm>
#include <type_traits>

namespace recgrela::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kMaxGroups = 32;       // of channels, to a block
constexpr int kMinRunRows = 4;       // no fewer than K - 1
constexpr int kMaxBlockRows = 4096;  // bounds the notes in shared memory
constexpr int kAddThreads = 1024;
constexpr int kMaxKernelSize = CausalConv1dParams::kMaxKernelSize;

struct ConvArgs {
  CausalConv1dParams p;
  int groups;        // of channels
  int columns;       // blocks side by side that cover the groups
  int block_groups;  // groups of a block
  int runs;          // of a block, one below the other
  int run_rows;
  int64_t row_blocks;
  bool aligned;  // each row of all matrices begins where a group can be loaded at once
};

// Channels of a group: 16 bytes.
template <typename E>
constexpr int kForwardChannels = 16 / sizeof(E);
// The backward keeps five times as much per channel in registers; 8 bytes of 16-bit numbers still fill cache lines.
constexpr int kBackwardChannels = 4;

// Row `row` if it is in [low, high), else zeros. `rows` points at the group in row 0.
template <typename E, int N>
__device__ Packed<E, N> load_row(const E* rows, int64_t stride, int row, int low, int high, int valid, bool whole) {
  if (row < low || row >= high) return {};
  if (whole) return *reinterpret_cast<const Packed<E, N>*>(rows + row * stride);
  float values[N];
  load_each(rows + row * stride, valid, values);
  return pack<E>(values);
}

__device__ float sigmoid(float x) { return fast_reciprocal(1.f + fast_exp2(x * -1.44269504f)); }

// Of x sigmoid(x).
__device__ float silu_grad(float x) {
  const float s = sigmoid(x);
  return s * (1.f + x * (1.f - s));
}

// What a thread works on.
template <typename E, int N, int K>
struct Run {
  int64_t row_block;
  int64_t base;     // the block's first row, less K - 1: the first that is noted
  int64_t begin;    // the run's first row
  int rows;         // 0 for a thread without work
  int low, high;    // which rows there are, from the run's first, of those from K - 1 before it to K - 1 behind it
  int64_t channel;  // the first of the group
  int valid;        // how many of the group's N channels there are
  bool whole;       // they are N, and aligned in every row

  __device__ explicit Run(const ConvArgs& a) {
    row_block = blockIdx.x / a.columns;
    const int run = static_cast<int>(threadIdx.x) / a.block_groups;
    const int group =
        static_cast<int>(blockIdx.x % a.columns) * a.block_groups + static_cast<int>(threadIdx.x) % a.block_groups;
    const int64_t num_rows = a.p.sequences.num_rows;
    begin = (row_block * a.runs + run) * a.run_rows;
    base = row_block * a.runs * a.run_rows - (K - 1);
    const int64_t left = num_rows - begin;
    rows = left < a.run_rows ? static_cast<int>(left) : a.run_rows;
    high = left < a.run_rows + K - 1 ? static_cast<int>(left) : a.run_rows + K - 1;
    low = begin == 0 ? 0 : -(K - 1);  // a run has no fewer rows
    channel = int64_t{group} * N;
    valid = a.p.channels - channel < N ? static_cast<int>(a.p.channels - channel) : N;
    whole = a.aligned && valid == N;
    if (run >= a.runs || group >= a.groups || rows < 0) rows = 0;
  }
};

// The taps and the bias of a group.
template <int N, int K>
struct Taps {
  float tap[K][N], bias[N];

  template <typename E>
  __device__ Taps(const CausalConv1dParams& p, int64_t channel, int valid, E) {
#pragma unroll
    for (int i = 0; i < N; ++i) {
#pragma unroll
      for (int w = 0; w < K; ++w)
        tap[w][i] = i < valid ? to_float(static_cast<const E*>(p.weight)[(channel + i) * K + w]) : 0.f;
      bias[i] = i < valid && p.bias ? to_float(static_cast<const E*>(p.bias)[channel + i]) : 0.f;
    }
  }

  // rows: the current one last
  __device__ void apply(const float (&rows)[K][N], float (&out)[N]) const {
#pragma unroll
    for (int i = 0; i < N; ++i) {
      out[i] = bias[i];
#pragma unroll
      for (int w = 0; w < K; ++w) out[i] += tap[w][i] * rows[w][i];
    }
  }
};

// rows[0 .. K - 2] become those before sequence `s`.
template <typename E, int N, int K>
__device__ void begin_sequence(const CausalConv1dParams& p, int64_t s, int64_t channel, int valid,
                               float (&rows)[K][N]) {
#pragma unroll
  for (int w = 0; w < K - 1; ++w)
    load_each(static_cast<const E*>(p.initial_history) + (s * (K - 1) + w) * p.channels + channel,
              p.initial_history ? valid : 0, rows[w]);
}

template <int N, int K>
__device__ void shift_up(float (&rows)[K][N]) {
#pragma unroll
  for (int w = 0; w + 1 < K; ++w)
#pragma unroll
    for (int i = 0; i < N; ++i) rows[w][i] = rows[w + 1][i];
}

// Notes for rows base .. base + count - 1: in starts the sequence that begins there, in ends (may be null) the one
// whose last row is the one before; else -1. For all threads of a block; `found` is one number in shared memory.
__device__ void note_boundaries(const Sequences& s, int64_t base, int count, int32_t* starts, int32_t* ends,
                                int64_t* found) {
  for (int i = threadIdx.x; i < count; i += kThreads) {
    starts[i] = -1;
    if (ends) ends[i] = -1;
  }
  if (threadIdx.x < 32) {
    const int64_t first = first_offset_from(s, base);
    if (threadIdx.x == 0) *found = first;
  }
  __syncthreads();
  for (int64_t i = *found + threadIdx.x; i <= s.num_sequences; i += kThreads) {
    const int64_t row = sequence_offset(s, i);
    if (row < base || row >= base + count) break;
    if (i < s.num_sequences && sequence_offset(s, i + 1) > row) starts[row - base] = static_cast<int32_t>(i);
    if (ends && i > 0 && sequence_offset(s, i - 1) < row) ends[row - base] = static_cast<int32_t>(i - 1);
  }
  __syncthreads();
}

template <typename E, int K>
__global__ void __launch_bounds__(kThreads, 2) conv_forward(ConvArgs a) {
  constexpr int N = kForwardChannels<E>, kAhead = 4;
  const CausalConv1dParams& p = a.p;
  const Run<E, N, K> run(a);
  int64_t* const found = reinterpret_cast<int64_t*>(dynamic_shared());
  const int32_t* starts = reinterpret_cast<int32_t*>(found + 1);
  note_boundaries(p.sequences, run.base, a.runs * a.run_rows + K - 1, reinterpret_cast<int32_t*>(found + 1), nullptr,
                  found);
  if (run.rows == 0) return;

  starts += run.begin - run.base;
  const Taps<N, K> taps(p, run.channel, run.valid, E{});
  const E* const x = static_cast<const E*>(p.x.data) + run.begin * p.x.stride + run.channel;
  E* const y = static_cast<E*>(p.y.data) + run.begin * p.y.stride + run.channel;
  float rows[K][N] = {};
  Packed<E, N> ahead[kAhead];
#pragma unroll
  for (int i = 0; i < kAhead; ++i)
    ahead[i] = load_row<E, N>(x, p.x.stride, run.low + i, run.low, run.rows, run.valid, run.whole);
#pragma unroll 1
  for (int first = run.low; first < run.rows; first += kAhead) {
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int row = first + i;
      if (row < run.rows) {
        const int32_t start = starts[row];
        if (start >= 0) begin_sequence<E>(p, start, run.channel, run.valid, rows);
        unpack(ahead[i], rows[K - 1]);
        if (row >= 0) {
          float out[N];
          taps.apply(rows, out);
          if (p.silu) {
#pragma unroll
            for (int c = 0; c < N; ++c) out[c] *= sigmoid(out[c]);
          }
          store_row(y + row * p.y.stride, run.valid, run.whole, out);
        }
        shift_up(rows);
      }
      ahead[i] = load_row<E, N>(x, p.x.stride, row + kAhead, INT32_MIN, run.rows, run.valid, run.whole);
    }
  }
}

// Sets d_x and the block's part of the weights' gradients: [K taps and the bias, C] in the workspace.
template <typename E, int K>
__global__ void __launch_bounds__(kThreads, 2) conv_backward(ConvArgs a) {
  constexpr int N = kBackwardChannels, kAhead = 8 / sizeof(E);
  const CausalConv1dParams& p = a.p;
  const Run<E, N, K> run(a);
  int64_t* const found = reinterpret_cast<int64_t*>(dynamic_shared());
  int32_t* starts = reinterpret_cast<int32_t*>(found + 1);
  const int count = a.runs * a.run_rows + 2 * (K - 1);
  note_boundaries(p.sequences, run.base, count, starts, p.d_final_history ? starts + count : nullptr, found);

  float tap_grad[K][N] = {}, bias_grad[N] = {};
  if (run.rows > 0) {
    starts += run.begin - run.base;
    const Taps<N, K> taps(p, run.channel, run.valid, E{});
    const E* const x = static_cast<const E*>(p.x.data) + run.begin * p.x.stride + run.channel;
    const E* const d_y = static_cast<const E*>(p.d_y.data) + run.begin * p.d_y.stride + run.channel;
    E* const d_x = static_cast<E*>(p.d_x.data) + run.begin * p.d_x.stride + run.channel;
    float rows[K][N] = {};
    float grad[K][N] = {};  // d_x of the rows row - K + 1 .. row, so far
    int depth = K - 1;      // how many rows of the sequence are before this one, if less than K - 1
    Packed<E, N> x_ahead[kAhead], d_y_ahead[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      x_ahead[i] = load_row<E, N>(x, p.x.stride, run.low + i, run.low, run.high, run.valid, run.whole);
      d_y_ahead[i] = load_row<E, N>(d_y, p.d_y.stride, run.low + i, 0, run.high, run.valid, run.whole);
    }
#pragma unroll 1
    for (int first = run.low; first < run.rows + K - 1; first += kAhead) {
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        const int row = first + i;
        if (row < run.rows + K - 1) {
          if (p.d_final_history) {
            const int32_t ended = starts[count + row];
            if (ended >= 0) {
#pragma unroll
              for (int w = 0; w < K - 1; ++w) {  // its last value is the row before this one
                float values[N];
                load_each(static_cast<const E*>(p.d_final_history) + (int64_t{ended} * (K - 1) + w) * p.channels +
                              run.channel,
                          K - 2 - w <= depth ? run.valid : 0, values);
#pragma unroll
                for (int c = 0; c < N; ++c) grad[w][c] += values[c];
              }
            }
          }
          const int32_t start = starts[row];
          depth = depth < K - 1 ? depth + 1 : K - 1;
          if (start >= 0) {
            begin_sequence<E>(p, start, run.channel, run.valid, rows);
            depth = 0;
          }
          unpack(x_ahead[i], rows[K - 1]);
          float d[N];
          unpack(d_y_ahead[i], d);  // zero before the run and behind the last row
          if (p.silu) {
            float pre[N];
            taps.apply(rows, pre);
#pragma unroll
            for (int c = 0; c < N; ++c) d[c] *= silu_grad(pre[c]);
          }
          if (row < run.rows) {
#pragma unroll
            for (int c = 0; c < N; ++c) {
              bias_grad[c] += d[c];
#pragma unroll
              for (int w = 0; w < K; ++w) tap_grad[w][c] += d[c] * rows[w][c];
            }
          }
#pragma unroll
          for (int w = 0; w < K; ++w) {
            if (K - 1 - w <= depth) {
#pragma unroll
              for (int c = 0; c < N; ++c) grad[w][c] += taps.tap[w][c] * d[c];
            }
          }
          if (row >= K - 1) store_row(d_x + (row - (K - 1)) * p.d_x.stride, run.valid, run.whole, grad[0]);
          shift_up(rows);
          shift_up(grad);
#pragma unroll
          for (int c = 0; c < N; ++c) grad[K - 1][c] = 0.f;
        }
        x_ahead[i] = load_row<E, N>(x, p.x.stride, row + kAhead, INT32_MIN, run.high, run.valid, run.whole);
        d_y_ahead[i] = load_row<E, N>(d_y, p.d_y.stride, row + kAhead, 0, run.high, run.valid, run.whole);
      }
    }
  }

  // The runs' sums, added in their order.
  __syncthreads();                                                 // the notes have been read
  float* const sums = reinterpret_cast<float*>(dynamic_shared());  // [K + 1, N, thread]
#pragma unroll
  for (int c = 0; c < N; ++c) {
#pragma unroll
    for (int w = 0; w < K; ++w) sums[(w * N + c) * kThreads + threadIdx.x] = tap_grad[w][c];
    sums[(K * N + c) * kThreads + threadIdx.x] = bias_grad[c];
  }
  __syncthreads();
  float* const partial = static_cast<float*>(p.workspace) + run.row_block * (K + 1) * p.channels;
  const int64_t block_channel = int64_t{blockIdx.x % a.columns} * a.block_groups * N;
  for (int i = threadIdx.x; i < (K + 1) * N * a.block_groups; i += kThreads) {
    const int value = i / a.block_groups, group = i % a.block_groups;
    const int64_t channel = block_channel + group * N + value % N;
    if (channel >= p.channels) continue;
    float sum = 0.f;
    for (int r = 0; r < a.runs; ++r) sum += sums[value * kThreads + r * a.block_groups + group];
    partial[value / N * p.channels + channel] = sum;
  }
}

// Adds the blocks' parts in a fixed order: each warp every 32nd of 32 columns, then the warps' sums one by one.
template <typename E>
__global__ void __launch_bounds__(kAddThreads) conv_add_partials(ConvArgs a) {
  constexpr int kWarps = kAddThreads / 32;
  const CausalConv1dParams& p = a.p;
  float (*const sums)[32] = reinterpret_cast<float (*)[32]>(dynamic_shared());
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t size = (p.kernel_size + 1) * p.channels, column = int64_t{blockIdx.x} * 32 + lane;
  float sum = 0.f;
  if (column < size) {
    const float* const partial = static_cast<const float*>(p.workspace) + column;
#pragma unroll 8
    for (int64_t i = warp; i < a.row_blocks; i += kWarps) sum += partial[i * size];
  }
  sums[warp][lane] = sum;
  __syncthreads();
  if (warp != 0 || column >= size) return;
  sum = 0.f;
  for (int w = 0; w < kWarps; ++w) sum += sums[w][lane];
  const int64_t tap = column / p.channels, channel = column % p.channels;
  if (tap < p.kernel_size) {
    static_cast<E*>(p.d_weight)[channel * p.kernel_size + tap] = from_float<E>(sum);
  } else if (p.d_bias) {
    static_cast<E*>(p.d_bias)[channel] = from_float<E>(sum);
  }
}

// A thread for each sequence and channel.
struct SequenceChannel {
  int64_t sequence, channel;
  bool valid;

  __device__ explicit SequenceChannel(const CausalConv1dParams& p) {
    const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
    sequence = i / p.channels, channel = i % p.channels;
    valid = sequence < p.sequences.num_sequences;
  }
};

// Word: any type of the elements' size.
template <typename Word>
__global__ void __launch_bounds__(kThreads) conv_final_history(CausalConv1dParams p) {
  const SequenceChannel at(p);
  if (!at.valid) return;
  const RowRange rows = sequence_rows(p.sequences, at.sequence);
  const int64_t history = p.kernel_size - 1, values = at.sequence * history * p.channels + at.channel;
  for (int64_t w = 0; w < history; ++w) {
    const int64_t row = rows.end - history + w;
    Word value = 0;
    if (row >= rows.begin) {
      value = static_cast<const Word*>(p.x.data)[row * p.x.stride + at.channel];
    } else if (p.initial_history) {  // the newest of these is right before the first row
      value = static_cast<const Word*>(p.initial_history)[values + (row - rows.begin + history) * p.channels];
    }
    static_cast<Word*>(p.final_history)[values + w * p.channels] = value;
  }
}

template <typename E>
__global__ void __launch_bounds__(kThreads) conv_initial_history_gradient(CausalConv1dParams p) {
  constexpr int kMaxHistory = kMaxKernelSize - 1;
  const SequenceChannel at(p);
  if (!at.valid) return;
  const RowRange rows = sequence_rows(p.sequences, at.sequence);
  const int64_t length = rows.end - rows.begin;
  const int history = p.kernel_size - 1;
  const int64_t values = at.sequence * history * p.channels + at.channel;
  // The rows that read an initial value, and those values before them.
  float ext[2 * kMaxHistory] = {}, tap[kMaxKernelSize] = {}, grad[kMaxHistory] = {};
#pragma unroll
  for (int w = 0; w < kMaxKernelSize; ++w)
    if (w <= history) tap[w] = to_float(static_cast<const E*>(p.weight)[at.channel * p.kernel_size + w]);
#pragma unroll
  for (int i = 0; i < 2 * kMaxHistory; ++i) {
    if (i < history) {
      if (p.initial_history) ext[i] = to_float(static_cast<const E*>(p.initial_history)[values + i * p.channels]);
    } else if (i - history < length) {
      ext[i] = to_float(static_cast<const E*>(p.x.data)[(rows.begin + i - history) * p.x.stride + at.channel]);
    }
  }
  const float bias = p.bias ? to_float(static_cast<const E*>(p.bias)[at.channel]) : 0.f;
#pragma unroll
  for (int t = 0; t < kMaxHistory; ++t) {
    if (t >= history || t >= length) break;
    float d = to_float(static_cast<const E*>(p.d_y.data)[(rows.begin + t) * p.d_y.stride + at.channel]);
    if (p.silu) {
      float pre = bias;
#pragma unroll
      for (int w = 0; w < kMaxKernelSize; ++w)
        if (t + w < 2 * kMaxHistory) pre += tap[w] * ext[t + w];  // tap is zero from the width on
      d *= silu_grad(pre);
    }
#pragma unroll
    for (int i = t; i < kMaxHistory; ++i)
      if (i < history) grad[i] += tap[i - t] * d;
  }
#pragma unroll
  for (int i = 0; i < kMaxHistory; ++i) {
    if (i >= history) break;
    if (p.d_final_history && i >= length)  // a value that is handed on
      grad[i] += to_float(static_cast<const E*>(p.d_final_history)[values + (i - length) * p.channels]);
    static_cast<E*>(p.d_initial_history)[values + i * p.channels] = from_float<E>(grad[i]);
  }
}

ConvArgs plan(const CausalConv1dParams& p, int group_channels) {
  ConvArgs a;
  a.p = p;
  const int64_t size = p.dtype == DType::kFloat32 ? 4 : 2, bytes = group_channels * size;
  a.aligned = is_aligned(p.x, size, bytes) && is_aligned(p.y, size, bytes) && is_aligned(p.d_y, size, bytes) &&
              is_aligned(p.d_x, size, bytes);
  a.groups = static_cast<int>(ceil_div(p.channels, group_channels));
  a.columns = static_cast<int>(ceil_div(a.groups, kMaxGroups));
  a.block_groups = static_cast<int>(ceil_div(a.groups, a.columns));
  a.runs = kThreads / a.block_groups;
  // Short runs read their neighbours' last rows again, long ones leave processors without work.
  const int64_t blocks = ceil_div(8 * multiprocessors(), a.columns);
  const int64_t rows = ceil_div(ceil_div(p.sequences.num_rows, blocks * a.runs), kMinRunRows) * kMinRunRows;
  a.run_rows = static_cast<int>(std::clamp<int64_t>(rows, kMinRunRows, std::min(64, kMaxBlockRows / a.runs)));
  a.row_blocks = ceil_div(p.sequences.num_rows, int64_t{a.runs} * a.run_rows);
  return a;
}

bool supported(const CausalConv1dParams& p) {
  return p.kernel_size >= 1 && p.kernel_size <= kMaxKernelSize && p.channels < (int64_t{1} << 31) &&
         p.sequences.num_sequences < (int64_t{1} << 31) - 1;
}

template <typename E, int K>
cudaError_t forward(const CausalConv1dParams& p, cudaStream_t stream) {
  const ConvArgs a = plan(p, kForwardChannels<E>);
  const size_t shared = 8 + 4 * (static_cast<size_t>(a.runs) * a.run_rows + K - 1);
  return launch(conv_forward<E, K>, a.row_blocks * a.columns, kThreads, shared, stream, a);
}

template <typename E, int K>
cudaError_t backward(const CausalConv1dParams& p, cudaStream_t stream) {
  const ConvArgs a = plan(p, kBackwardChannels);
  const size_t notes = 8 + (p.d_final_history ? 8 : 4) * (static_cast<size_t>(a.runs) * a.run_rows + 2 * (K - 1));
  const size_t sums = sizeof(float) * (K + 1) * kBackwardChannels * kThreads;
  cudaError_t error = launch(conv_backward<E, K>, a.row_blocks * a.columns, kThreads, std::max(notes, sums), stream, a);
  if (error != cudaSuccess) return error;
  error = launch(conv_add_partials<E>, ceil_div((K + 1) * p.channels, 32), kAddThreads, kAddThreads * sizeof(float),
                 stream, a);
  if (error != cudaSuccess || !p.d_initial_history || K == 1) return error;
  return launch(conv_initial_history_gradient<E>, ceil_div(p.sequences.num_sequences * p.channels, kThreads), kThreads,
                0, stream, p);
}

// f(E{}, the width as a constant)
template <typename E, typename F>
cudaError_t with_kernel_size(int width, F&& f) {
  switch (width) {
    case 1:
      return f(E{}, std::integral_constant<int, 1>{});
    case 2:
      return f(E{}, std::integral_constant<int, 2>{});
    case 3:
      return f(E{}, std::integral_constant<int, 3>{});
    case 4:
      return f(E{}, std::integral_constant<int, 4>{});
    default:
      return cudaErrorInvalidValue;
  }
}

template <typename F>
cudaError_t with_types(const CausalConv1dParams& p, F&& f) {
  switch (p.dtype) {
    case DType::kFloat32:
      return with_kernel_size<float>(p.kernel_size, f);
    case DType::kFloat16:
      return with_kernel_size<fp16>(p.kernel_size, f);
    case DType::kBFloat16:
      return with_kernel_size<bf16>(p.kernel_size, f);
  }
  return cudaErrorInvalidValue;
}

}  // namespace

cudaError_t causal_conv1d_forward(const CausalConv1dParams& p, cudaStream_t stream) {
  if (!supported(p)) return cudaErrorInvalidValue;
  cudaError_t error = check_sequences(p.sequences, nullptr, 0, stream);
  if (error != cudaSuccess || p.channels == 0) return error;
  error = with_types(
      p, [&](auto element, auto width) { return forward<decltype(element), decltype(width)::value>(p, stream); });
  if (error != cudaSuccess || !p.final_history || p.kernel_size == 1) return error;
  const int64_t blocks = ceil_div(p.sequences.num_sequences * p.channels, kThreads);
  return p.dtype == DType::kFloat32 ? launch(conv_final_history<uint32_t>, blocks, kThreads, 0, stream, p)
                                    : launch(conv_final_history<uint16_t>, blocks, kThreads, 0, stream, p);
}

size_t causal_conv1d_backward_workspace(const CausalConv1dParams& p) {
  if (!supported(p) || p.channels == 0) return 0;
  return plan(p, kBackwardChannels).row_blocks * (p.kernel_size + 1) * p.channels * sizeof(float);
}

cudaError_t causal_conv1d_backward(const CausalConv1dParams& p, cudaStream_t stream) {
  if (!supported(p)) return cudaErrorInvalidValue;
  if (p.channels == 0) return cudaSuccess;
  return with_types(
      p, [&](auto element, auto width) { return backward<decltype(element), decltype(width)::value>(p, stream); });
}

}  // namespace recgrela::cuda
