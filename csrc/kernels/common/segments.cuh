// What the scans share: sequences cut into segments, and sums of parts in a fixed order.
//
// Many short sequences: each is one segment. Few long ones: a segment's own sums are found first, carried along each
// sequence in order, and given to the threads that finish the segments. Which it is depends on sizes that the host
// knows; the cut itself is found on the device.
#pragma once

#include <algorithm>

#include "kernels/common/packed.cuh"
#include "kernels/common/sequences.cuh"

namespace recgrela::cuda {

struct SegmentPlan {
  Sequences sequences;
  int64_t rows = 1;   // of a segment; the last of a sequence may have fewer
  bool cut = false;   // sequences may have more than one
  int64_t slots = 0;  // places for segments; not all are taken
};

// Rows begin .. end of a sequence, of all rows; none where the sequence is empty or the slot is not taken.
struct ScanSegment {
  int64_t sequence, slot;
  int64_t begin, end;
  int64_t index, count;  // among the sequence's segments

  __device__ bool taken() const { return index < count; }
  __device__ bool first() const { return index == 0; }
  __device__ bool last() const { return index + 1 == count; }
};

inline __device__ int64_t segments_of(const SegmentPlan& p, const RowRange& rows) {
  return !p.cut || rows.end == rows.begin ? 1 : (rows.end - rows.begin + p.rows - 1) / p.rows;
}

inline __device__ int64_t first_slot(const SegmentPlan& p, int64_t b) {
  return p.cut ? first_slot(p.sequences, p.rows, b) : b;
}

// By a whole warp.
inline __device__ ScanSegment find_segment(const SegmentPlan& p, int64_t slot) {
  ScanSegment s;
  s.slot = slot;
  s.sequence = p.cut ? sequence_of_slot(p.sequences, p.rows, slot) : slot;
  const RowRange rows = sequence_rows(p.sequences, s.sequence);
  s.index = slot - first_slot(p, s.sequence);
  s.count = segments_of(p, rows);
  s.begin = rows.begin, s.end = rows.end;
  if (p.cut) {
    s.begin += s.index * p.rows;
    if (!s.taken()) s.begin = rows.end;
    if (!s.last()) s.end = min(rows.end, s.begin + p.rows);
  }
  return s;
}

// `row_threads`: those that a row keeps busy. `segment_rows` 0: chosen here, a multiple of `unit`.
inline SegmentPlan plan_segments(const Sequences& s, int64_t row_threads, int64_t segment_rows, int64_t unit) {
  SegmentPlan p;
  p.sequences = s;
  p.rows = segment_rows;
  if (p.rows == 0) {
    constexpr int64_t kThreads = 512, kLeastRows = 64;  // for each multiprocessor; of a segment
    const int64_t threads = kThreads * multiprocessors();
    p.rows = std::max(kLeastRows, s.num_rows * row_threads / threads);
    // Where the sequences are work enough, only those far longer than the others are cut.
    if (s.num_sequences * row_threads >= threads / 2)
      p.rows = std::max(p.rows, 4 * ceil_div(s.num_rows, s.num_sequences));
  }
  p.rows = ceil_div(p.rows, unit) * unit;
  const int64_t longest = s.max_length > 0 ? std::min(s.max_length, s.num_rows) : s.num_rows;
  p.cut = s.num_sequences > 0 && longest > p.rows;
  p.slots = s.num_sequences == 0 ? 0 : p.cut ? s.num_rows / p.rows + s.num_sequences : s.num_sequences;
  return p;
}

constexpr int kAddThreads = 1024;

struct AddArgs {
  const float* parts = nullptr;  // [count, size]
  int64_t count = 0, size = 0;
  float* sums = nullptr;  // [size]
};

// Adds parts in a fixed order: each warp every 32nd of 32 columns, then the warps' sums one by one.
template <int kThreads>
__global__ void __launch_bounds__(kThreads) add_parts_kernel(const AddArgs args) {
  constexpr int kWarps = kThreads / 32;
  float (*const sums)[32] = reinterpret_cast<float (*)[32]>(dynamic_shared());
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t column = int64_t{blockIdx.x} * 32 + lane;
  float sum = 0.f;
  if (column < args.size) {
#pragma unroll 8
    for (int64_t i = warp; i < args.count; i += kWarps) sum += args.parts[i * args.size + column];
  }
  sums[warp][lane] = sum;
  __syncthreads();
  if (warp != 0 || column >= args.size) return;
  sum = 0.f;
  for (int w = 0; w < kWarps; ++w) sum += sums[w][lane];
  args.sums[column] = sum;
}

inline cudaError_t add_parts(const float* parts, int64_t count, int64_t size, float* sums, cudaStream_t stream) {
  return launch(add_parts_kernel<kAddThreads>, ceil_div(size, 32), kAddThreads, kAddThreads * sizeof(float), stream,
                AddArgs{parts, count, size, sums});
}

// Hands out arrays of a workspace, each aligned to 256 bytes.
struct Workspace {
  void* memory;
  size_t used = 0;

  float* take(int64_t floats) {
    float* const place = reinterpret_cast<float*>(static_cast<char*>(memory) + used);
    used += ceil_div(floats * int64_t{sizeof(float)}, 256) * 256;
    return place;
  }
};

}  // namespace recgrela::cuda
