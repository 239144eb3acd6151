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

template <int kLanes, int kGroups, bool kFull, bool kNorm>
__global__ void __launch_bounds__(kEmbeddingThreads, 2) embedding_sums_kernel(const EmbeddingPlan p) {
  using RowTeam = Team<kLanes, kGroups, kFull>;
  using Row = typename RowTeam::Row;
  const RowTeam team(p.width);
  const int num_rows = static_cast<int>(p.num_rows), width = p.width;
  float* const shared = reinterpret_cast<float*>(dynamic_shared());  // [2, kTeams, D]
  auto crossing = [&](Crossing kind, int t) { return shared + (kind * RowTeam::kTeams + t) * width; };
  auto item_at = [&](int i) { return i >= 0 && i < num_rows ? p.sorted[i].x : -1; };
  const int block_begin = static_cast<int>(blockIdx.x) * p.block_rows;
  const int begin = block_begin + team.index() * p.piece;

  Row weight = {}, sum = {};
  NormGradients<kLanes, kGroups, kFull> parameters;
  if constexpr (kNorm) team.read(p.weight, true, weight);
  const DropoutHash hash(p.dropout);
  const float inverse_width = 1.f / static_cast<float>(width), eps = eps_before_scale(p.eps, hash.scale());
  // Rows are loaded one position ahead, and their indices two.
  Row next_x, next_d;
  auto entry_at = [&](int i) { return i < num_rows ? p.sorted[i] : make_int2(-1, 0); };
  auto load = [&](const int2& entry, bool in_piece) {
    const bool active = in_piece && entry.x >= 0 && (kNorm || entry.x != p.padding_idx);
    if constexpr (kNorm) team.read(p.table + int64_t{entry.x} * width, active, next_x);
    team.load(team.template at<const float>(p.d_y, entry.y), active, next_d);
  };
  int2 entry = entry_at(begin), next = entry_at(begin + 1);
  bool from_before = entry.x >= 0 && item_at(begin - 1) == entry.x;
  load(entry, true);
#pragma unroll 1
  for (int i = 0; i < p.piece; ++i) {
    const bool is_last = i + 1 == p.piece;
    const int2 after_next = entry_at(begin + i + 2);
    Row x = next_x, d = next_d;
    load(next, !is_last);
    const uint32_t kept = team.kept(hash, entry.y);
    if constexpr (kNorm) {
      drop(kept, x);
      const float factor = team.normalize(x, inverse_width, entry.x >= 0 ? eps : 1.f);  // finite in any case
      parameters.add(team, weight, x, factor, inverse_width, d);
    }
    drop(kept, d);
    add(sum, d);
    if (entry.x >= 0 && (is_last || next.x != entry.x)) {
      if constexpr (!kNorm) scale(hash.scale(), sum);
      if (from_before)
        team.write(crossing(kFromBefore, team.index()), sum);
      else if (next.x == entry.x)
        team.write(crossing(kIntoNext, team.index()), sum);
      else if (entry.x != p.padding_idx)
        team.write(p.d_table + int64_t{entry.x} * width, sum);
      from_before = false, sum = {};
    }
    entry = next, next = after_next;
  }
  __syncthreads();

  // Runs that cross a border within the block: the team whose piece a run begins in adds the parts of the next teams.
  const int block_end = min(block_begin + p.block_rows, num_rows), piece_end = begin + p.piece;
  auto add_from = [&](int first, int item) {  // returns whether the run reaches the end of the block
    int border = block_begin + first * p.piece;
    for (int t = first; t < RowTeam::kTeams && item_at(border) == item; ++t, border += p.piece) {
      Row part;
      team.read(crossing(kFromBefore, t), true, part);
      add(sum, part);
    }
    return item_at(block_end) == item;
  };
  float* const between_blocks = p.crossing + int64_t{blockIdx.x} * 2 * width;
  if (team.index() == 0 && item_at(block_begin) == item_at(block_begin - 1)) {
    add_from(0, item_at(block_begin));
    team.write(between_blocks, sum);
  }
  const int item = begin < block_end ? item_at(min(piece_end, block_end) - 1) : -1;
  if (item >= 0 && item_at(begin - 1) != item && item_at(piece_end) == item) {
    team.read(crossing(kIntoNext, team.index()), true, sum);
    if (add_from(team.index() + 1, item))
      team.write(between_blocks + width, sum);
    else if (item != p.padding_idx)
      team.write(p.d_table + int64_t{item} * width, sum);
  }

  if constexpr (kNorm) {
    __syncthreads();
    parameters.store(team, width, p.d_parameters + int64_t{blockIdx.x} * 2 * width);
  }
}

// Adds row(0), row(1), ... in a fixed order until it returns null, and stores the sum. A block calls it.
template <typename RowAt>
__device__ void add_rows(RowAt row, int width, float* to) {
  const int lanes = width / 4, groups = kEmbeddingThreads / lanes;
  const int lane = threadIdx.x % lanes, group = threadIdx.x / lanes;
  float4* const sums = reinterpret_cast<float4*>(dynamic_shared());  // [groups, lanes]
  auto add4 = [](float4& sum, const float4& x) { sum.x += x.x, sum.y += x.y, sum.z += x.z, sum.w += x.w; };
  float4 sum = make_float4(0.f, 0.f, 0.f, 0.f);
  if (group < groups) {
#pragma unroll 4
    for (int64_t i = group;; i += groups) {
      const float* const from = row(i);
      if (!from) break;
      add4(sum, reinterpret_cast<const float4*>(from)[lane]);
    }
    sums[threadIdx.x] = sum;
  }
  __syncthreads();
  if (group > 0) return;
  for (int g = 1; g < groups; ++g) add4(sum, sums[g * lanes + lane]);
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
    const float* const partials = p.d_parameters + kind * width;
    add_rows([&](int64_t i) { return i < p.blocks ? partials + i * 2 * width : nullptr; }, p.width, to);
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
  RECGRELA_RETURN_IF_ERROR(dispatch_width(p.width, [&](auto lanes, auto groups, auto full) {
    const auto kernel = p.weight ? embedding_sums_kernel<lanes(), groups(), full(), true>
                                 : embedding_sums_kernel<lanes(), groups(), full(), false>;
    const size_t shared = sizeof(float) * 2 * Team<lanes(), groups(), full()>::kTeams * p.width;
    return launch(kernel, p.blocks, kEmbeddingThreads, shared, stream, p);
  }));
  const int64_t borders = p.blocks > 0 ? p.blocks - 1 : 0;
  return launch(embedding_crossing_kernel, borders + (p.weight ? 2 : 0), kEmbeddingThreads,
                kEmbeddingThreads * sizeof(float4), stream, p);
}

}  // namespace recgrela::cuda
