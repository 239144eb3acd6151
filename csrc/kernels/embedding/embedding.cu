// Host side of embedding. The forward is one kernel. The backward sorts the rows by item in one kernel, or in three for
// each digit of the items, and adds them in two.
#include <algorithm>

#include "kernels/common/workspace.cuh"
#include "kernels/embedding/team.cuh"

namespace recgrela::cuda {
namespace {

constexpr int kMaxDigitBits = 12;
constexpr int kMinChunk = 256, kMaxOneBlockChunk = 1024, kMaxChunk = 8160;  // counts are 16-bit numbers
constexpr int kMinPiece = 4, kMaxPiece = 64;
constexpr int kBlocksPerMultiprocessor = 2;

bool supported(const EmbeddingParams& p) {
  return p.width >= p.kMinWidth && p.width <= p.kMaxWidth && p.width % p.kMinWidth == 0 && p.num_rows <= p.kMaxRows &&
         p.n_items > 0 && p.n_items < (int64_t{1} << 31);
}

EmbeddingPlan make_plan(const EmbeddingParams& params) {
  EmbeddingPlan p;
  static_cast<EmbeddingParams&>(p) = params;
  int bits = 1;
  while (bits < 31 && p.n_items > int64_t{1} << bits) ++bits;
  p.passes = static_cast<int>(ceil_div(bits, p.digit_bits ? p.digit_bits : kMaxDigitBits));
  p.digit_bits = static_cast<int>(ceil_div(bits, p.passes));
  if (p.sort_chunk == 0) {
    const int64_t per_warp = ceil_div(ceil_div(p.num_rows, kSortWarps), 32) * 32;
    const int64_t chunk = ceil_div(ceil_div(per_warp, multiprocessors()), 32) * 32;
    p.sort_chunk = static_cast<int>(per_warp <= kMaxOneBlockChunk ? std::max<int64_t>(per_warp, 32)
                                                                  : std::clamp<int64_t>(chunk, kMinChunk, kMaxChunk));
  }
  p.sort_blocks = static_cast<int>(std::max<int64_t>(ceil_div(p.num_rows, kSortWarps * int64_t{p.sort_chunk}), 1));

  int teams = 0;
  dispatch_width(p.width, [&](auto lanes, auto groups, auto full) {
    teams = Team<lanes(), groups(), full()>::kTeams;
    return cudaSuccess;
  });
  if (p.piece == 0) {
    const int64_t blocks = kBlocksPerMultiprocessor * multiprocessors();
    p.piece = static_cast<int>(std::clamp<int64_t>(ceil_div(p.num_rows, teams * blocks), kMinPiece, kMaxPiece));
  }
  p.block_rows = teams * p.piece;
  p.blocks = ceil_div(p.num_rows, p.block_rows);
  return p;
}

size_t lay_out(EmbeddingPlan& p) {
  Workspace workspace(p.workspace);
  p.sorted = static_cast<int2*>(workspace.take_bytes(p.num_rows * int64_t{sizeof(int2)}));
  if (p.passes > 1) p.unsorted = static_cast<int2*>(workspace.take_bytes(p.num_rows * int64_t{sizeof(int2)}));
  if (p.sort_blocks > 1) {
    const int64_t counter = sizeof(int32_t);
    p.counts = static_cast<int32_t*>(workspace.take_bytes(int64_t{p.sort_blocks} * p.bins() * counter));
    p.totals = static_cast<int32_t*>(workspace.take_bytes(p.bins() * counter));
  }
  p.crossing = workspace.take_floats(p.blocks * 2 * p.width);
  if (p.weight) p.d_parameters = workspace.take_floats(2 * p.blocks * p.width);
  return workspace.size();
}

}  // namespace

size_t embedding_backward_workspace(const EmbeddingParams& params) {
  if (!supported(params)) return 0;
  EmbeddingPlan p = make_plan(params);
  return lay_out(p);
}

cudaError_t embedding_forward(const EmbeddingParams& params, cudaStream_t stream) {
  return supported(params) ? launch_embedding_forward(make_plan(params), stream) : cudaErrorInvalidValue;
}

cudaError_t embedding_backward(const EmbeddingParams& params, cudaStream_t stream) {
  if (!supported(params)) return cudaErrorInvalidValue;
  EmbeddingPlan p = make_plan(params);
  lay_out(p);
  RECGRELA_RETURN_IF_ERROR(launch_embedding_sort(p, stream));
  return launch_embedding_sums(p, stream);
}

}  // namespace recgrela::cuda
