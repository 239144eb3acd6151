// Segments: pieces of sequences that are processed in parallel.
//
// If there are many short sequences, each is one segment. A few long sequences are cut into segments. One kernel then
// computes the sums over each segment, a second one carries them along each sequence, which gives the state before each
// segment, and a third one processes the segments. The host decides from sizes alone whether to cut; the device
// computes the segments from the offsets.
#pragma once

#include <algorithm>

#include "kernels/common/sequences.cuh"

namespace recgrela::cuda {

struct SegmentPlan {
  Sequences sequences;
  int64_t rows = 1;       // of a segment; the last one of a sequence may have fewer
  bool is_cut = false;    // a sequence may have more than one segment
  int64_t num_slots = 0;  // upper bound on the number of segments
};

// Rows begin .. end of a sequence, counted among all rows.
struct Segment {
  int64_t sequence, slot;
  int64_t sequence_begin, sequence_end;
  int64_t begin, end;
  int64_t index, count;  // among the segments of the sequence; not in [0, count): the slot is empty

  __device__ bool exists() const { return index >= 0 && index < count; }
  __device__ bool is_first() const { return index == 0; }
  __device__ bool is_last() const { return index + 1 == count; }
};

// First slot of sequence b where sequences are cut every `segment_rows` rows. No two segments share a slot, and no list
// of segments is needed; some slots stay empty.
inline __device__ int64_t first_slot(const Sequences& s, int64_t segment_rows, int64_t b) {
  return sequence_rows(s, b).begin / segment_rows + b;
}
inline __device__ int64_t first_slot(const SegmentPlan& p, int64_t b) {
  return p.is_cut ? first_slot(p.sequences, p.rows, b) : b;
}

// Number of segments of a sequence; an empty one has one segment.
inline __device__ int64_t count_segments(const SegmentPlan& p, const RowRange& rows) {
  return !p.is_cut || rows.end == rows.begin ? 1 : (rows.end - rows.begin + p.rows - 1) / p.rows;
}

// Last sequence whose first slot is not after `slot`. A whole warp calls it and probes 32 sequences at a time.
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

// Segment of a slot. A whole warp calls it.
inline __device__ Segment find_segment(const SegmentPlan& p, int64_t slot) {
  Segment s;
  s.slot = slot;
  s.sequence = p.is_cut ? sequence_of_slot(p.sequences, p.rows, slot) : slot;
  const RowRange rows = sequence_rows(p.sequences, s.sequence);
  s.sequence_begin = s.begin = rows.begin, s.sequence_end = s.end = rows.end;
  s.index = 0, s.count = 1;
  if (p.is_cut) {
    s.index = slot - first_slot(p, s.sequence);
    s.count = count_segments(p, rows);
    s.begin = s.exists() ? rows.begin + s.index * p.rows : rows.end;
    if (!s.is_last()) s.end = min(rows.end, s.begin + p.rows);
  }
  return s;
}

// Cuts sequences that may be longer than `rows`.
inline SegmentPlan plan_segments(const Sequences& s, int64_t rows) {
  SegmentPlan p;
  p.sequences = s;
  p.rows = rows;
  const int64_t max_length = s.max_length > 0 ? std::min(s.max_length, s.num_rows) : s.num_rows;
  p.is_cut = s.num_sequences > 0 && max_length > rows;
  p.num_slots = s.num_sequences == 0 ? 0 : p.is_cut ? s.num_rows / rows + s.num_sequences : s.num_sequences;
  return p;
}

// Plans the segments of a scan that uses `row_threads` threads per row. Segments have `segment_rows` rows, rounded up
// to a multiple of `unit`. If segment_rows is 0, they are short enough to keep the device busy.
inline SegmentPlan plan_scan(const Sequences& s, int64_t row_threads, int64_t segment_rows, int64_t unit) {
  if (segment_rows == 0) {
    constexpr int64_t kThreads = 512;  // per multiprocessor
    constexpr int64_t kMinRows = 64;   // of a segment
    const int64_t threads = kThreads * multiprocessors();
    segment_rows = std::max(kMinRows, s.num_rows * row_threads / threads);
    // If uncut sequences keep the device busy, only sequences much longer than the mean are cut.
    if (s.num_sequences * row_threads >= threads / 2)
      segment_rows = std::max(segment_rows, 4 * ceil_div(s.num_rows, s.num_sequences));
  }
  return plan_segments(s, ceil_div(segment_rows, unit) * unit);
}

// Calls use(k, i, load(k, i)) for i = 0 .. count - 1 in order, in batches of kBatch loads: element k of a batch has
// index i. Calls advance() after each batch. load is also called for the indices from count on in the last batch, and
// may return anything for them.
template <int kBatch, typename Load, typename Use, typename Advance>
__device__ void for_each_in_batches(int64_t count, Load load, Use use, Advance advance) {
  for (int64_t first = 0; first < count; first += kBatch) {
    decltype(load(0, first)) loaded[kBatch];
#pragma unroll
    for (int k = 0; k < kBatch; ++k) loaded[k] = load(k, first + k);
#pragma unroll
    for (int k = 0; k < kBatch; ++k)
      if (first + k < count) use(k, first + k, loaded[k]);
    advance();
  }
}

}  // namespace recgrela::cuda
