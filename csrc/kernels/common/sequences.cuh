// Offsets of packed sequences on the device. A separate kernel checks them, since the host never waits for the device.
// The kernels after it in the stream clamp every offset that they use as an address.
#pragma once

#include <algorithm>

#include "kernels/common/host.cuh"

namespace recgrela::cuda {

// Offset i in [0, B], unchecked.
inline __device__ int64_t sequence_offset(const Sequences& s, int64_t i) {
  return s.is_int64 ? static_cast<const int64_t*>(s.offsets)[i] : int64_t{static_cast<const int32_t*>(s.offsets)[i]};
}

struct RowRange {
  int64_t begin, end;
};

// Rows of sequence b, clamped to [0, T].
inline __device__ RowRange sequence_rows(const Sequences& s, int64_t b) {
  int64_t begin = sequence_offset(s, b), end = sequence_offset(s, b + 1);
  begin = begin < 0 ? 0 : begin > s.num_rows ? s.num_rows : begin;
  end = end < begin ? begin : end > s.num_rows ? s.num_rows : end;
  return {begin, end};
}

// Index of the first offset that is not below `row`; B + 1 if all are below. A whole warp calls it and probes 32
// offsets at a time.
inline __device__ int64_t first_offset_from(const Sequences& s, int64_t row) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  int64_t low = 0, high = s.num_sequences + 1;
  while (low < high) {
    const int64_t step = (high - low + 31) / 32, probe = low + (lane + 1) * step - 1;
    const bool below = probe < high && sequence_offset(s, probe) < row;
    low += __popc(__ballot_sync(0xffffffffu, below)) * step;
    high = high < low + step - 1 ? high : low + step - 1;
  }
  return low;
}

constexpr int kCheckThreads = 1024;

struct SequenceChecks {
  Sequences sequences;
  const int64_t* initial_position;  // [B], rows before each sequence; null: zeros
  int64_t rotary_positions;         // of the rotary table; 0: no table
};

template <int kThreads>
__global__ void __launch_bounds__(kThreads) check_sequences_kernel(const SequenceChecks checks) {
  const Sequences& s = checks.sequences;
  const int64_t first = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (first == 0) {
    RECGRELA_DEVICE_CHECK(sequence_offset(s, 0) == 0, "cu_seqlens must start at 0");
    RECGRELA_DEVICE_CHECK(sequence_offset(s, s.num_sequences) == s.num_rows,
                          "cu_seqlens must end at the number of rows");
  }
  for (int64_t i = first; i < s.num_sequences; i += int64_t{gridDim.x} * kThreads) {
    const int64_t begin = sequence_offset(s, i), end = sequence_offset(s, i + 1), length = end - begin;
    const int64_t position = checks.initial_position ? checks.initial_position[i] : 0;
    RECGRELA_DEVICE_CHECK(begin >= 0 && end >= begin, "cu_seqlens must not decrease");
    RECGRELA_DEVICE_CHECK(position >= 0, "an initial position must not be negative");
    RECGRELA_DEVICE_CHECK(checks.rotary_positions <= 0 || length <= checks.rotary_positions - position,
                          "a sequence is longer than the rotary table");
    RECGRELA_DEVICE_CHECK(s.max_length <= 0 || length <= s.max_length, "a sequence is longer than max_length");
  }
}

// Launches a kernel that fails unless the offsets are valid and the rotary table covers every position.
inline cudaError_t check_sequences(const Sequences& s, cudaStream_t stream, const int64_t* initial_position = nullptr,
                                   int64_t rotary_positions = 0) {
  const int64_t blocks = std::min<int64_t>(s.num_sequences / (4 * kCheckThreads) + 1, 128);  // usually one
  return launch(check_sequences_kernel<kCheckThreads>, blocks, kCheckThreads, 0, stream,
                SequenceChecks{s, initial_position, rotary_positions});
}

}  // namespace recgrela::cuda
