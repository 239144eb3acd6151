// Gradients of embedding from sorted rows.
//
// A block adds block_rows sorted rows, and each of its teams a piece of them. A team walks over its piece, a run of
// rows of one item at a time, recomputes the row of y from the table and adds the gradients. It stores the sum of a run
// within its piece in d_table; runs that cross a border between pieces are added up in shared memory, and those that
// cross a border between blocks by a second kernel. A popular item is thus the work of many teams, and every sum has a
// fixed order.
#include "kernels/embedding/team.cuh"

namespace recgrela::cuda {
namespace {

// Sums of the runs of a team that cross a border of its piece, in shared memory.
enum Crossing { kFromBefore, kIntoNext };

template <typename Shape, bool kNorm>
__global__ void __launch_bounds__(kEmbeddingThreads, 2) embedding_sums_kernel(const EmbeddingPlan p) {
  using RowTeam = Team<Shape>;
  using Row = typename RowTeam::Row;
  constexpr int N = RowTeam::kElements;
  constexpr bool kFewVectors = Shape::kLaneVectors < 3;  // registers suffice for the weight and the next row of x
  const RowTeam team(p.width);
  const int num_rows = static_cast<int>(p.num_rows), width = p.width;
  float* const shared = reinterpret_cast<float*>(dynamic_shared());  // [2, kTeams, D]
  auto crossing = [&](Crossing kind, int t) { return shared + (kind * Shape::kTeams + t) * width; };
  auto item_at = [&](int64_t i) { return i >= 0 && i < num_rows ? p.sorted[i].x : -1; };
  const int64_t block_begin = int64_t{blockIdx.x} * p.block_rows;
  const int64_t begin = block_begin + team.index() * p.piece;

  Row weight = {}, d_weight = {}, d_bias = {}, sum = {};
  if constexpr (kNorm && kFewVectors) team.load(p.weight, true, weight);
  const DropoutHash hash(p.dropout);
  // Rows are loaded one position ahead, and their indices two.
  Row next_x, next_d;
  auto entry_at = [&](int64_t i) { return i < num_rows ? p.sorted[i] : make_int2(-1, 0); };
  auto load = [&](const int2& entry, int i) {
    const bool valid = i < p.piece && entry.x >= 0 && (kNorm || entry.x != p.padding_idx);
    if constexpr (kNorm && kFewVectors) team.load(p.table + int64_t{entry.x} * width, valid, next_x);
    team.load(static_cast<const float*>(p.d_y.data) + entry.y * p.d_y.stride, valid, next_d);
  };
  int2 entry = entry_at(begin), next = entry_at(begin + 1);
  bool from_before = entry.x >= 0 && item_at(begin - 1) == entry.x;
  load(entry, 0);
  for (int i = 0; i < p.piece; ++i) {
    const int2 after_next = entry_at(begin + i + 2);
    Row x, d;
#pragma unroll
    for (int j = 0; j < N; ++j) {
      if constexpr (kNorm && kFewVectors) x[j] = next_x[j];
      d[j] = next_d[j];
    }
    if constexpr (kNorm && !kFewVectors) team.load(p.table + int64_t{entry.x} * width, entry.x >= 0, x);
    load(next, i + 1);
    if constexpr (kNorm) {
      if (hash.active()) team.drop(hash, entry.y, x);
      const float reciprocal = team.normalize(entry.x >= 0 ? p.eps : 1.f, x);  // finite after the last row too
      if constexpr (!kFewVectors) team.load(p.weight, true, weight);
#pragma unroll
      for (int j = 0; j < N; ++j) {
        d_weight[j] += d[j] * x[j], d_bias[j] += d[j];
        d[j] *= weight[j];
      }
      team.normalize_backward(x, reciprocal, d);
    }
    if (hash.active()) team.drop(hash, entry.y, d);
#pragma unroll
    for (int j = 0; j < N; ++j) sum[j] += d[j];
    const bool is_last = i + 1 == p.piece;
    if (entry.x >= 0 && (is_last || next.x != entry.x)) {
      if (from_before)
        team.store(crossing(kFromBefore, team.index()), sum);
      else if (next.x == entry.x)
        team.store(crossing(kIntoNext, team.index()), sum);
      else if (entry.x != p.padding_idx)
        team.store(p.d_table + int64_t{entry.x} * width, sum);
      from_before = false;
#pragma unroll
      for (int j = 0; j < N; ++j) sum[j] = 0.f;
    }
    entry = next, next = after_next;
  }
  __syncthreads();

  // Runs that cross a border within the block: the team whose piece a run begins in adds the parts of the next teams.
  const int64_t block_end = min(block_begin + p.block_rows, p.num_rows), piece_end = begin + p.piece;
  auto add_from = [&](int first, int item) {  // returns whether the run reaches the end of the block
    int64_t border = block_begin + int64_t{first} * p.piece;
    for (int t = first; t < Shape::kTeams && item_at(border) == item; ++t, border += p.piece) {
      Row part;
      team.load(crossing(kFromBefore, t), true, part);
#pragma unroll
      for (int j = 0; j < N; ++j) sum[j] += part[j];
    }
    return item_at(block_end) == item;
  };
  float* const between_blocks = p.crossing + int64_t{blockIdx.x} * 2 * width;
  if (team.index() == 0 && item_at(block_begin) == item_at(block_begin - 1)) {
    add_from(0, item_at(block_begin));
    team.store(between_blocks, sum);
  }
  const int item = begin < block_end ? item_at(min(piece_end, block_end) - 1) : -1;
  if (item >= 0 && item_at(begin - 1) != item && item_at(piece_end) == item) {
    team.load(crossing(kIntoNext, team.index()), true, sum);
    if (add_from(team.index() + 1, item))
      team.store(between_blocks + width, sum);
    else if (item != p.padding_idx)
      team.store(p.d_table + int64_t{item} * width, sum);
  }

  if constexpr (kNorm) {
    __syncthreads();
    team.store(shared + team.index() * width, d_weight);
    team.store(shared + (Shape::kTeams + team.index()) * width, d_bias);
    __syncthreads();
    for (int i = threadIdx.x; i < 2 * width; i += kEmbeddingThreads) {
      const int kind = i / width, column = i % width;
      float total = 0.f;
      for (int t = 0; t < Shape::kTeams; ++t) total += shared[(kind * Shape::kTeams + t) * width + column];
      p.d_parameters[(kind * p.blocks + blockIdx.x) * width + column] = total;
    }
  }
}

// Adds row(0), row(1), ... in a fixed order until it returns null, and stores the sum. A block calls it.
template <typename RowAt>
__device__ void add_rows(RowAt row, int width, float* to) {
  const int lanes = width / 4, groups = kEmbeddingThreads / lanes;
  const int lane = threadIdx.x % lanes, group = threadIdx.x / lanes;
  float4* const sums = reinterpret_cast<float4*>(dynamic_shared());  // [groups, lanes]
  auto add = [](float4& sum, const float4& x) { sum.x += x.x, sum.y += x.y, sum.z += x.z, sum.w += x.w; };
  float4 sum = make_float4(0.f, 0.f, 0.f, 0.f);
  if (group < groups) {
#pragma unroll 4
    for (int64_t i = group;; i += groups) {
      const float* const from = row(i);
      if (!from) break;
      add(sum, reinterpret_cast<const float4*>(from)[lane]);
    }
    sums[threadIdx.x] = sum;
  }
  __syncthreads();
  if (group > 0) return;
  for (int g = 1; g < groups; ++g) add(sum, sums[g * lanes + lane]);
  reinterpret_cast<float4*>(to)[lane] = sum;
}

// Adds the runs that cross a border between blocks, one border for each block of threads. The last two blocks of
// threads add d_weight and d_bias.
__global__ void __launch_bounds__(kEmbeddingThreads) embedding_crossing_kernel(const EmbeddingPlan p) {
  const int64_t borders = p.blocks > 0 ? p.blocks - 1 : 0, width = p.width;
  if (blockIdx.x >= borders) {
    const int64_t kind = blockIdx.x - borders;
    float* const to = kind == 0 ? p.d_weight : p.d_bias;
    if (!to) return;
    const float* const partials = p.d_parameters + kind * p.blocks * width;
    add_rows([&](int64_t i) { return i < p.blocks ? partials + i * width : nullptr; }, p.width, to);
    return;
  }
  const int64_t block = blockIdx.x, border = (block + 1) * p.block_rows, begin = border - p.block_rows;
  const int item = p.sorted[border].x;
  // The run must cross this border, and no earlier one.
  if (p.sorted[border - 1].x != item || item == p.padding_idx) return;
  if (block > 0 && p.sorted[begin - 1].x == item) return;
  auto row = [&](int64_t i) -> const float* {
    if (i == 0) return p.crossing + (2 * block + 1) * width;
    const int64_t next = block + i;
    return next < p.blocks && p.sorted[next * p.block_rows].x == item ? p.crossing + 2 * next * width : nullptr;
  };
  add_rows(row, p.width, p.d_table + item * width);
}

}  // namespace

cudaError_t launch_embedding_sums(const EmbeddingPlan& p, cudaStream_t stream) {
  RECGRELA_RETURN_IF_ERROR(dispatch_team(p.width, [&](auto shape) {
    using Shape = decltype(shape);
    const auto kernel = p.weight ? embedding_sums_kernel<Shape, true> : embedding_sums_kernel<Shape, false>;
    const size_t shared = size_t{2} * Shape::kTeams * p.width * sizeof(float);
    return launch(kernel, p.blocks, kEmbeddingThreads, shared, stream, p);
  }));
  const int64_t borders = p.blocks > 0 ? p.blocks - 1 : 0;
  return launch(embedding_crossing_kernel, borders + (p.weight ? 2 : 0), kEmbeddingThreads,
                kEmbeddingThreads * sizeof(float4), stream, p);
}

}  // namespace recgrela::cuda
