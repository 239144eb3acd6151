// Forward of embedding: a team looks up rows of the table, drops elements and normalizes them.
#include <algorithm>

#include "kernels/embedding/team.cuh"

namespace recgrela::cuda {
namespace {

constexpr int kBlocks = 4;  // on a multiprocessor

template <int kLanes, int kGroups, bool kFull, bool kNorm>
__global__ void __launch_bounds__(kEmbeddingThreads, kBlocks) embedding_forward_kernel(const EmbeddingParams p) {
  using RowTeam = Team<kLanes, kGroups, kFull>;
  using Row = typename RowTeam::Row;
  const RowTeam team(p.width);
  const int num_rows = static_cast<int>(p.num_rows), step = static_cast<int>(gridDim.x) * RowTeam::kTeams;
  Row weight, bias;
  if constexpr (kNorm) {
    team.read(p.weight, true, weight);
    team.read(p.bias, p.bias != nullptr, bias);
  }
  const DropoutHash hash(p.dropout);
  const float inverse_width = 1.f / static_cast<float>(p.width), eps = eps_before_scale(p.eps, hash.scale());
  // Rows are loaded one step ahead, and their items two.
  auto item_at = [&](int64_t row) { return row < num_rows ? p.items[row] : -1; };
  auto load = [&](int64_t item, int64_t row, Row& x) {
    RECGRELA_DEVICE_CHECK(row >= num_rows || (item >= 0 && item < p.n_items),
                          "embedding: an item is not a row of the table");
    team.read(p.table + item * p.width, row < num_rows, x);
  };
  const int64_t first = int64_t{blockIdx.x} * RowTeam::kTeams;
  int64_t next = item_at(first + team.index() + step);
  Row next_x;
  load(item_at(first + team.index()), first + team.index(), next_x);
#pragma unroll 1
  for (int64_t begin = first; begin < num_rows; begin += step) {  // the same for all teams, which add together
    const int64_t row = begin + team.index();
    Row x = next_x;
    load(next, row + step, next_x);
    next = item_at(row + 2 * int64_t{step});
    drop(team.kept(hash, static_cast<int>(row)), x);
    if constexpr (kNorm) {
      team.normalize(x, inverse_width, eps);
#pragma unroll
      for (int i = 0; i < 4 * kGroups; ++i)
        x.x[i / 4][i % 4] = x.x[i / 4][i % 4] * weight.x[i / 4][i % 4] + bias.x[i / 4][i % 4];
    } else {
      scale(hash.scale(), x);
    }
    if (row < num_rows) team.write(p.y + row * p.width, x);
  }
}

}  // namespace

cudaError_t launch_embedding_forward(const EmbeddingPlan& p, cudaStream_t stream) {
  return dispatch_width(p.width, [&](auto lanes, auto groups, auto full) {
    const auto kernel = p.weight ? embedding_forward_kernel<lanes(), groups(), full(), true>
                                 : embedding_forward_kernel<lanes(), groups(), full(), false>;
    const int64_t blocks = ceil_div(p.num_rows, Team<lanes(), groups(), full()>::kTeams);
    const EmbeddingParams& params = p;
    return launch(kernel, std::min<int64_t>(blocks, kBlocks * multiprocessors()), kEmbeddingThreads, 0, stream, params);
  });
}

}  // namespace recgrela::cuda
