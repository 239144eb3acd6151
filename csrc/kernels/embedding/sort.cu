// Stable sort of rows by item: counting sort by digits, from the lowest.
//
// A warp sorts a chunk of consecutive rows, 32 at a time: lanes with equal digits find each other by votes, and the
// first of them adds to the warp's own count of the digit, so that no atomic operation is needed. A pass takes three
// kernels: counts of each block; the rows of each digit in earlier blocks; and the moves. Up to 8,192 rows are sorted
// by one block, which needs only the last kernel. Up to 4,096 items are a single digit.
#include "kernels/embedding/plan.cuh"

namespace recgrela::cuda {
namespace {

constexpr int kScanBins = 32, kScanGroups = kSortThreads / kScanBins;
constexpr int kZeroRows = 64;  // of d_table that a block of the sort by one block sets to zero, at least

struct SortPass {
  const int64_t* items;  // first pass only, else null
  const int2* from;      // null in the first pass
  int2* to;
  int64_t num_rows, n_items;
  int32_t *counts, *totals;
  int shift, digit_bits, chunk, blocks;
  float* zero;  // set to zero by the pass; may be null
  int64_t zero_floats;
};

// Sets `zero` to zero by threads `first`, `first` + `step`, ...
__device__ void set_zero(const SortPass& p, int64_t first, int64_t step) {
  if (!p.zero) return;
  for (int64_t i = 4 * first; i < p.zero_floats; i += 4 * step)
    *reinterpret_cast<float4*>(p.zero + i) = make_float4(0.f, 0.f, 0.f, 0.f);
}

// A warp's chunk of rows, and its counts of digits in shared memory.
class Chunk {
 public:
  __device__ Chunk(const SortPass& p, uint16_t* counts)
      : p_(p), lane_(static_cast<int>(threadIdx.x % 32)), counts_(counts + (threadIdx.x / 32 << p.digit_bits)) {
    begin_ = (int64_t{blockIdx.x} * kSortWarps + threadIdx.x / 32) * p.chunk;
    end_ = min(begin_ + p.chunk, p.num_rows);
  }

  __device__ void count() const {
    for (int digit = lane_; digit < 1 << p_.digit_bits; digit += 32) counts_[digit] = 0;
    __syncwarp();
    for_each([](const int2&, int, int) {});
  }

  // Calls use(entry, digit, n) for each row; n is the count of the digit before it.
  template <typename Use>
  __device__ void for_each(Use use) const {
    for (int64_t first = begin_; first < end_; first += 32) {
      const int64_t i = first + lane_;
      const bool valid = i < end_;
      const int2 entry = load(valid ? i : first);
      const int digit = entry.x >> p_.shift & ((1 << p_.digit_bits) - 1);
      unsigned peers = __ballot_sync(0xffffffffu, valid);
      for (int bit = 0; bit < p_.digit_bits; ++bit) {
        const unsigned set = __ballot_sync(0xffffffffu, digit >> bit & 1);
        peers &= digit >> bit & 1 ? set : ~set;
      }
      const unsigned before = peers & ((1u << lane_) - 1);
      const int count = counts_[digit];
      __syncwarp();
      if (valid) {
        use(entry, digit, count + __popc(before));
        if (before == 0) counts_[digit] = static_cast<uint16_t>(count + __popc(peers));
      }
      __syncwarp();
    }
  }

 private:
  __device__ int2 load(int64_t i) const {
    if (p_.from) return p_.from[i];
    const int64_t item = min(max(p_.items[i], int64_t{0}), p_.n_items - 1);
    return make_int2(static_cast<int>(item), static_cast<int>(i));
  }

  const SortPass& p_;
  const int lane_;
  uint16_t* const counts_;
  int64_t begin_, end_;
};

// Counts the digits of each block.
__global__ void __launch_bounds__(kSortThreads) embedding_count_kernel(const SortPass p) {
  const int bins = 1 << p.digit_bits;
  uint16_t* const counts = reinterpret_cast<uint16_t*>(dynamic_shared());  // [kSortWarps, bins]
  set_zero(p, int64_t{blockIdx.x} * kSortThreads + threadIdx.x, int64_t{gridDim.x} * kSortThreads);
  Chunk(p, counts).count();
  __syncthreads();
  for (int digit = threadIdx.x; digit < bins; digit += kSortThreads) {
    int sum = 0;
    for (int warp = 0; warp < kSortWarps; ++warp) sum += counts[warp * bins + digit];
    p.counts[int64_t{blockIdx.x} * bins + digit] = sum;
  }
}

// Replaces the counts of a digit by the rows of that digit in earlier blocks. A block of threads handles kScanBins
// digits, and each of kScanGroups groups of threads a range of blocks.
__global__ void __launch_bounds__(kSortThreads) embedding_scan_kernel(const SortPass p) {
  __shared__ int sums[kScanGroups][kScanBins];
  const int bins = 1 << p.digit_bits, column = threadIdx.x % kScanBins, group = threadIdx.x / kScanBins;
  const int digit = static_cast<int>(blockIdx.x) * kScanBins + column;
  const int range = (p.blocks + kScanGroups - 1) / kScanGroups, first = group * range;
  const int end = min(first + range, p.blocks);
  int32_t* const counts = p.counts + digit;
  int sum = 0;
  if (digit < bins) {
#pragma unroll 8
    for (int block = first; block < end; ++block) sum += counts[int64_t{block} * bins];
  }
  sums[group][column] = sum;
  __syncthreads();
  if (digit >= bins) return;
  int before = 0;
  for (int g = 0; g < group; ++g) before += sums[g][column];
#pragma unroll 8
  for (int block = first; block < end; ++block) {
    const int count = counts[int64_t{block} * bins];
    counts[int64_t{block} * bins] = before;
    before += count;
  }
  if (group == kScanGroups - 1) p.totals[digit] = before;
}

// Inclusive sum over the lanes of a warp.
__device__ int prefix_sum(int x) {
#pragma unroll
  for (int lanes = 1; lanes < 32; lanes *= 2) {
    const int other = __shfl_up_sync(0xffffffffu, x, lanes);
    if (static_cast<int>(threadIdx.x % 32) >= lanes) x += other;
  }
  return x;
}

// Moves each row to its place.
__global__ void __launch_bounds__(kSortThreads) embedding_move_kernel(const SortPass p) {
  if (static_cast<int>(blockIdx.x) >= p.blocks) {  // of a sort by one block
    const int64_t block = static_cast<int>(blockIdx.x) - p.blocks;
    set_zero(p, block * kSortThreads + threadIdx.x, (int64_t{gridDim.x} - p.blocks) * kSortThreads);
    return;
  }
  const int bins = 1 << p.digit_bits, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  int32_t* const starts = reinterpret_cast<int32_t*>(dynamic_shared());          // [bins]
  int32_t* const warp_sums = starts + bins;                                      // [kSortWarps]
  uint16_t* const counts = reinterpret_cast<uint16_t*>(warp_sums + kSortWarps);  // [kSortWarps, bins]
  const Chunk chunk(p, counts);
  chunk.count();
  __syncthreads();

  // Rows of smaller digits, by each warp for a range of digits
  const int range = (bins + kSortThreads - 1) / kSortThreads * 32, end = min((warp + 1) * range, bins);
  int sum = 0;
  for (int first = warp * range; first < end; first += 32) {
    const int digit = first + lane;
    int total = 0;
    if (digit < end) {
      if (p.blocks > 1) {
        total = p.totals[digit];
      } else {
        for (int w = 0; w < kSortWarps; ++w) total += counts[w * bins + digit];
      }
    }
    const int inclusive = prefix_sum(total);
    if (digit < end) starts[digit] = sum + inclusive - total;
    sum += __shfl_sync(0xffffffffu, inclusive, 31);
  }
  if (lane == 0) warp_sums[warp] = sum;
  __syncthreads();

  // Rows of the same digit in earlier blocks and warps
  sum = 0;
  for (int w = 0; w < warp; ++w) sum += warp_sums[w];
  for (int digit = warp * range + lane; digit < end; digit += 32) {
    starts[digit] += sum + (p.blocks > 1 ? p.counts[int64_t{blockIdx.x} * bins + digit] : 0);
    int before = 0;
    for (int w = 0; w < kSortWarps; ++w) {
      const int count = counts[w * bins + digit];
      counts[w * bins + digit] = static_cast<uint16_t>(before);
      before += count;
    }
  }
  __syncthreads();
  chunk.for_each([&](const int2& entry, int digit, int before) { p.to[starts[digit] + before] = entry; });
}

}  // namespace

cudaError_t launch_embedding_sort(const EmbeddingPlan& plan, cudaStream_t stream) {
  SortPass p;
  p.num_rows = plan.num_rows, p.n_items = plan.n_items;
  p.counts = plan.counts, p.totals = plan.totals;
  p.digit_bits = plan.digit_bits, p.chunk = plan.sort_chunk, p.blocks = plan.sort_blocks;
  const size_t counts_bytes = size_t{kSortWarps} * plan.bins() * sizeof(uint16_t);
  const size_t move_bytes = counts_bytes + (plan.bins() + kSortWarps) * sizeof(int32_t);
  for (int pass = 0; pass < plan.passes; ++pass) {
    const bool to_sorted = (plan.passes - pass) % 2 == 1;  // the last pass stores the result
    p.items = pass == 0 ? plan.items : nullptr;
    p.from = pass == 0 ? nullptr : to_sorted ? plan.unsorted : plan.sorted;
    p.to = to_sorted ? plan.sorted : plan.unsorted;
    p.shift = pass * plan.digit_bits;
    p.zero = pass == 0 ? plan.d_table : nullptr, p.zero_floats = plan.n_items * plan.width;
    int64_t zero_blocks = 0;
    if (p.blocks > 1) {
      RECGRELA_RETURN_IF_ERROR(launch(embedding_count_kernel, p.blocks, kSortThreads, counts_bytes, stream, p));
      RECGRELA_RETURN_IF_ERROR(
          launch(embedding_scan_kernel, ceil_div(plan.bins(), kScanBins), kSortThreads, 0, stream, p));
    } else if (p.zero) {
      zero_blocks = min(ceil_div(p.n_items, kZeroRows), int64_t{multiprocessors()});
    }
    RECGRELA_RETURN_IF_ERROR(
        launch(embedding_move_kernel, p.blocks + zero_blocks, kSortThreads, move_bytes, stream, p));
  }
  return cudaSuccess;
}

}  // namespace recgrela::cuda
