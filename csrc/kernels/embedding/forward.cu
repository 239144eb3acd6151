// Forward of embedding: a team looks up a row of the table, drops elements and normalizes the row.
#include "kernels/embedding/team.cuh"

namespace recgrela::cuda {
namespace {

template <typename Shape, bool kNorm>
__global__ void __launch_bounds__(kEmbeddingThreads, 4) embedding_forward_kernel(const EmbeddingParams p) {
  using RowTeam = Team<Shape>;
  const RowTeam team(p.width);
  const int64_t row = int64_t{blockIdx.x} * Shape::kTeams + team.index();
  const bool valid = row < p.num_rows;
  const int64_t item = valid ? p.items[row] : 0;
  RECGRELA_DEVICE_CHECK(item >= 0 && item < p.n_items, "embedding: an item is not a row of the table");
  typename RowTeam::Row x;
  team.load(p.table + item * p.width, valid, x);
  const DropoutHash hash(p.dropout);
  if (hash.active()) team.drop(hash, row, x);
  if constexpr (kNorm) {
    team.normalize(p.eps, x);
    typename RowTeam::Row weight, bias;
    team.load(p.weight, true, weight);
    team.load(p.bias, p.bias != nullptr, bias);
#pragma unroll
    for (int i = 0; i < RowTeam::kElements; ++i) x[i] = x[i] * weight[i] + bias[i];
  }
  if (valid) team.store(p.y + row * p.width, x);
}

}  // namespace

cudaError_t launch_embedding_forward(const EmbeddingPlan& p, cudaStream_t stream) {
  return dispatch_team(p.width, [&](auto shape) {
    using Shape = decltype(shape);
    const auto kernel = p.weight ? embedding_forward_kernel<Shape, true> : embedding_forward_kernel<Shape, false>;
    const EmbeddingParams& params = p;
    return launch(kernel, ceil_div(p.num_rows, Shape::kTeams), kEmbeddingThreads, 0, stream, params);
  });
}

}  // namespace recgrela::cuda
