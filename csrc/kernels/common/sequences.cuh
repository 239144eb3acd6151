// Offsets of packed sequences on the device. A kernel of each forward checks them, since the host never waits for the
// device. All kernels clamp every offset that they use as an address, because the check may come after they use it.
#pragma once

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

// Fails unless the offsets are valid and the rotary table covers every position. All threads of a launch call it once.
// The other threads do not wait for it: no kernel uses an offset as an address before it has clamped it.
// initial_position [B] has the rows before each sequence (null: none); rotary_positions is 0 without a table.
inline __device__ void check_sequences(const Sequences& s, const int64_t* initial_position = nullptr,
                                       int64_t rotary_positions = 0) {
  const int64_t first = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (first == 0) {
    RECGRELA_DEVICE_CHECK(sequence_offset(s, 0) == 0, "cu_seqlens must start at 0");
    RECGRELA_DEVICE_CHECK(sequence_offset(s, s.num_sequences) == s.num_rows,
                          "cu_seqlens must end at the number of rows");
  }
  for (int64_t i = first; i < s.num_sequences; i += int64_t{gridDim.x} * blockDim.x) {
    const int64_t begin = sequence_offset(s, i), end = sequence_offset(s, i + 1), length = end - begin;
    const int64_t position = initial_position ? initial_position[i] : 0;
    RECGRELA_DEVICE_CHECK(begin >= 0 && end >= begin, "cu_seqlens must not decrease");
    RECGRELA_DEVICE_CHECK(position >= 0, "an initial position must not be negative");
    RECGRELA_DEVICE_CHECK(rotary_positions <= 0 || length <= rotary_positions - position,
                          "a sequence is longer than the rotary table");
    RECGRELA_DEVICE_CHECK(s.max_length <= 0 || length <= s.max_length, "a sequence is longer than max_length");
  }
}

}  // namespace recgrela::cuda
