// Offsets of packed sequences on the device. What they say is checked by a kernel of its own, as nothing waits for the
// device; the kernels that follow it in the stream therefore clamp every offset that they use as an address.
#pragma once

#include "kernels/common/device.cuh"
#include "kernels/common/params.h"

#include <algorithm>

namespace recgrela::cuda {

// As it stands, i in [0, B].
inline __device__ int64_t sequence_offset(const Sequences& s, int64_t i) {
  return s.is_int64 ? static_cast<const int64_t*>(s.offsets)[i] : int64_t{static_cast<const int32_t*>(s.offsets)[i]};
}

struct RowRange {
  int64_t begin, end;
};

// The rows of sequence i; inside [0, T] whatever the offsets say.
inline __device__ RowRange sequence_rows(const Sequences& s, int64_t i) {
  int64_t begin = sequence_offset(s, i), end = sequence_offset(s, i + 1);
  begin = begin < 0 ? 0 : begin > s.num_rows ? s.num_rows : begin;
  end = end < begin ? begin : end > s.num_rows ? s.num_rows : end;
  return {begin, end};
}

// The first i in [0, B + 1] whose offset is not below `row`; B + 1 if all are. By a whole warp, 32 probes at a time.
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

// Sequences that are cut into segments of a number of rows: those of sequence b have the slots
// offset(b) / segment_rows + b + 0, 1 ..: no two share one, and no list needs to be made.
inline __device__ int64_t first_slot(const Sequences& s, int64_t segment_rows, int64_t b) {
  return sequence_rows(s, b).begin / segment_rows + b;
}

// The last sequence whose first slot is not after this one. By a whole warp, 32 places at a time.
inline __device__ int64_t sequence_of_slot(const Sequences& s, int64_t segment_rows, int64_t slot) {
  int64_t low = 0, size = s.num_sequences;
  while (size > 1) {
    const int64_t step = (size + 31) / 32, probe = low + step * (threadIdx.x % 32);
    const bool before = probe < low + size && first_slot(s, segment_rows, probe) <= slot;
    const int found = __popc(__ballot_sync(0xffffffffu, before));
    const int64_t next = low + step * (found > 0 ? found - 1 : 0);
    size = step < low + size - next ? step : low + size - next;
    low = next;
  }
  return low;
}

constexpr int kCheckThreads = 1024;

struct SequenceChecks {
  Sequences sequences;
  const int64_t* rows_before;  // [B], of a state that goes before each sequence; null: none
  int64_t positions;           // of the rotary table; 0: there is none
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
    const int64_t before = checks.rows_before ? checks.rows_before[i] : 0;
    RECGRELA_DEVICE_CHECK(begin >= 0 && end >= begin, "cu_seqlens must not decrease");
    RECGRELA_DEVICE_CHECK(before >= 0, "the count of rows before a sequence must not be negative");
    RECGRELA_DEVICE_CHECK(checks.positions <= 0 || length <= checks.positions - before,
                          "a sequence is longer than the rotary table");
    RECGRELA_DEVICE_CHECK(s.max_length <= 0 || length <= s.max_length, "a sequence is longer than it was said to be");
  }
}

// Stops the stream with an error if the offsets are not those of packed sequences.
inline cudaError_t check_sequences(const Sequences& s, const int64_t* rows_before, int64_t positions,
                                   cudaStream_t stream) {
  const int64_t blocks = std::min<int64_t>(s.num_sequences / (4 * kCheckThreads) + 1, 128);  // one is enough for most
  return launch(check_sequences_kernel<kCheckThreads>, blocks, kCheckThreads, 0, stream,
                SequenceChecks{s, rows_before, positions});
}

}  // namespace recgrela::cuda
