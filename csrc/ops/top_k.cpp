// The operator top_k on the CPU. It has no gradient: its results are ids, and scores that rank them.
#include "cpu/top_k.h"

#include "cpu.h"

namespace recgrela::ops {
namespace {

constexpr char kName[] = "top_k";
constexpr const char* kSchema =
    "top_k(Tensor queries, Tensor weight, Tensor? bias, Tensor bounds, Tensor? codes, Tensor? scales, Tensor? biases, "
    "Tensor? order, int k, Tensor? excluded, Tensor? cu_excluded, Tensor? allowed) -> (Tensor items, Tensor scores)";

// Items beyond k that a query keeps: enough to choose the best among them in little time for each.
constexpr int64_t kMinSpare = 64, kMaxSpare = 4096;

// The items that each query excludes, sorted for each query.
std::vector<int64_t> sorted_by_query(const Tensor& excluded, const std::vector<int64_t>& offsets) {
  std::vector<int64_t> items(excluded.size(0));
  std::copy_n(data<int64_t>(excluded), items.size(), items.begin());
  torch::stable::parallel_for(0, static_cast<int64_t>(offsets.size()) - 1, 16, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) std::sort(items.begin() + offsets[i], items.begin() + offsets[i + 1]);
  });
  return items;
}

std::tuple<Tensor, Tensor> top_k(const Tensor& queries_, const Tensor& weight_, const OptTensor& bias_,
                                 const Tensor& bounds_, const OptTensor& codes_, const OptTensor& scales_,
                                 const OptTensor& biases_, const OptTensor& order_, int64_t k,
                                 const OptTensor& excluded_, const OptTensor& cu_excluded_, const OptTensor& allowed_) {
  using cpu::TopKParams;
  const Tensor queries = contiguous(queries_), weight = contiguous(weight_), bounds = contiguous(bounds_);
  const OptTensor bias = contiguous(bias_), codes = contiguous(codes_), scales = contiguous(scales_);
  const OptTensor biases = contiguous(biases_), order = contiguous(order_), allowed = contiguous(allowed_);
  check_operand(weight, queries, ScalarType::Float, {-1, -1}, "weight");
  TopKParams p;
  p.num_items = weight.size(0), p.dim = weight.size(1), p.k = k;
  RECGRELA_CHECK(p.num_items > 0 && p.num_items < (int64_t{1} << 31) && p.dim > 0 && p.dim <= 65536,
                 "weight [N, D] must have 1 .. 2^31 - 1 rows of 1 .. 65536 elements");
  RECGRELA_CHECK(k >= 1 && k < (int64_t{1} << 31), "k must be at least 1 and below 2^31, not ", k);
  const int64_t rows = p.blocks() * TopKParams::kBlockRows;
  check_operand(queries, queries, ScalarType::Float, {-1, p.dim}, "queries");
  check_operand(bias, queries, ScalarType::Float, {p.num_items}, "bias");
  check_operand(bounds, queries, ScalarType::Float, {p.blocks(), TopKParams::kBounds}, "bounds");
  check_operand(codes, queries, ScalarType::Char, {p.blocks(), p.groups_of_dims(), TopKParams::kBlockRows, 4}, "codes");
  check_operand(scales, queries, ScalarType::Float, {rows}, "scales");
  check_operand(biases, queries, ScalarType::Float, {rows}, "biases");
  check_operand(order, queries, ScalarType::Int, {rows}, "order");
  check_operand(allowed, queries, ScalarType::Bool, {p.num_items}, "allowed");
  RECGRELA_CHECK(codes.has_value() == scales.has_value() && codes.has_value() == order.has_value() &&
                     (codes && bias) == biases.has_value(),
                 "codes, scales and order go together, and with a bias also biases");
  p.num_queries = queries.size(0);

  RECGRELA_CHECK(excluded_.has_value() == cu_excluded_.has_value(), "excluded and cu_excluded go together");
  std::vector<int64_t> excluded, offsets;
  if (excluded_) {
    check_operand(excluded_, queries, ScalarType::Long, {-1}, "excluded");
    check_cu_seqlens(*cu_excluded_, queries);
    RECGRELA_CHECK(cu_excluded_->size(0) == p.num_queries + 1, "cu_excluded must be [B + 1]");
    offsets = read_sequences(torch::stable::contiguous(*cu_excluded_), excluded_->size(0)).offsets;
    excluded = sorted_by_query(torch::stable::contiguous(*excluded_), offsets);
    p.excluded = excluded.data(), p.cu_excluded = offsets.data();
  }

  const Tensor items = make(queries, {p.num_queries, k}, ScalarType::Long);
  const Tensor scores = make(queries, {p.num_queries, k});
  if (p.num_queries == 0) return {items, scores};
  p.queries = data<float>(queries), p.weight = data<float>(weight), p.bias = data<float>(bias);
  p.bounds = data<float>(bounds), p.codes = data<int8_t>(codes), p.scales = data<float>(scales);
  p.biases = data<float>(biases), p.order = data<int32_t>(order), p.allowed = data<bool>(allowed);
  const int64_t threads = torch::stable::get_num_threads(), groups = p.groups_of_queries();
  p.parts = std::min(p.blocks(), groups >= threads ? 1 : cpu::ceil_div(threads, groups));
  // A part finds at most as many items as it has.
  p.k = std::min(k, p.num_items);
  p.spare = std::max(kMinSpare, std::min(p.k, kMaxSpare));
  const std::unique_ptr<cpu::TopKFound[]> found(new cpu::TopKFound[p.num_queries * p.parts * p.capacity()]);
  std::vector<int64_t> counts(p.num_queries * p.parts);
  p.found = found.get(), p.counts = counts.data();
  const auto& kernels = cpu::top_k_kernels();
  run_workers<char>(kernels.search, p, groups * p.parts, p.num_queries * p.num_items, kernels.scratch(p));

  int64_t* const item_out = mutable_data<int64_t>(items);
  float* const score_out = mutable_data<float>(scores);
  torch::stable::parallel_for(0, p.num_queries, 8, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      auto *const first = p.found + i * p.parts * p.capacity(), *last = first;
      for (int64_t part = 0; part < p.parts; ++part)
        last = std::copy_n(first + part * p.capacity(), counts[i * p.parts + part], last);
      const int64_t kept = std::min<int64_t>(p.k, last - first);
      std::partial_sort(first, first + kept, last, [](const auto& a, const auto& b) { return a.key > b.key; });
      for (int64_t j = 0; j < k; ++j) {
        item_out[i * k + j] = j < kept ? cpu::item_of(first[j].key) : 0;
        score_out[i * k + j] = j < kept ? cpu::score_of(first[j].key) : -std::numeric_limits<float>::infinity();
      }
    }
  });
  return {items, scores};
}

}  // namespace
}  // namespace recgrela::ops

STABLE_TORCH_LIBRARY_FRAGMENT(recgrela, m) { m.def(recgrela::ops::kSchema); }

STABLE_TORCH_LIBRARY_IMPL(recgrela, CPU, m) {
  using Call = recgrela::ops::Named<recgrela::ops::kName, false, &recgrela::ops::top_k>;
  m.impl(recgrela::ops::kName, TORCH_BOX(&Call::call));
}
