// The operator linear_cross_entropy: divides the scores into blocks and runs the kernels' phases on each.
#include "cpu/linear_cross_entropy.h"

#include <cmath>
#include <limits>
#include <utility>

#include "cpu.h"

namespace recgrela::ops {
namespace {

void check_operands(const Tensor& hidden, const Tensor& weight, const Tensor& target) {
  check_operand(hidden, hidden, hidden.scalar_type(), {-1, -1}, "hidden");
  STD_TORCH_CHECK(hidden.size(0) > 0 && hidden.size(1) > 0, "hidden [T, D] must not be empty");
  check_operand(weight, hidden, hidden.scalar_type(), {-1, hidden.size(1)}, "weight");
  STD_TORCH_CHECK(weight.size(0) > 0, "weight [n_items, D] must not be empty");
  check_operand(target, hidden, ScalarType::Long, {hidden.size(0)}, "target");
  const int64_t* const t = data<int64_t>(target);
  for (int64_t i = 0; i < target.size(0); ++i)
    STD_TORCH_CHECK(t[i] >= 0 && t[i] < weight.size(0), "target ", t[i], " is out of bounds; there are ",
                    weight.size(0), " items");
}

// One call of the op. Keeps at most max_logits scores in memory, or one panel of kBlockRows rows if that is more. A
// block covers all items if they fit: scores are then computed once instead of twice.
template <typename T>
class LinearCrossEntropy {
 public:
  using Params = cpu::LinearCrossEntropyParams<T>;
  using Kernels = cpu::LinearCrossEntropyKernels<T>;

  LinearCrossEntropy(Params params, int64_t num_rows, int64_t num_items, int64_t max_logits)
      : p_(params), kernels_(cpu::linear_cross_entropy_kernels<T>()), num_rows_(num_rows), num_items_(num_items) {
    p_.lanes = kernels_.lanes, p_.panel_width = kernels_.panel_width;
    p_.chunk_panels = Params::kChunkItems / p_.panel_width;
    constexpr int64_t kBlock = Params::kBlockRows;
    const int64_t all_rows = cpu::round_up(num_rows, kBlock), all_items = cpu::round_up(num_items, p_.panel_width);
    if (const int64_t rows = max_logits / all_items / kBlock * kBlock; rows > 0) {
      rows_ = std::min(rows, all_rows), items_ = all_items;
    } else {
      rows_ = std::clamp(max_logits / Params::kChunkItems / kBlock * kBlock, kBlock, std::min(5 * kBlock, all_rows));
      items_ = std::clamp(max_logits / rows_ / p_.panel_width * p_.panel_width, p_.panel_width, all_items);
    }
  }

  double operator()() {
    p_.num_rows = rows_, p_.num_items = items_;
    const int64_t r = p_.padded_rows(), n = p_.panels() * p_.panel_width, c = p_.chunks(), d = p_.padded_dim();
    const bool gradients = p_.d_hidden.data || p_.d_weight.data;
    const Scratch block((r * n + n * p_.dim + n * d + r * d + 2 * r * c) * sizeof(T)), rows(3 * num_rows_ * sizeof(T));
    T* memory = reinterpret_cast<T*>(block.memory.get());
    auto take = [&](int64_t count) { return std::exchange(memory, memory + count); };
    p_.scores = take(r * n), p_.weight_panels = take(n * p_.dim), p_.weight_rows = take(n * d), p_.scaled = take(r * d);
    p_.chunk_max_score = take(r * c), p_.chunk_sum = take(r * c);
    p_.max_score = reinterpret_cast<T*>(rows.memory.get());
    p_.sum = p_.max_score + num_rows_, p_.target_score = p_.sum + num_rows_;
    std::fill_n(p_.max_score, num_rows_, -std::numeric_limits<T>::infinity());
    std::fill_n(p_.sum, num_rows_, T(0));

    const bool one_pass = items_ >= num_items_;
    pass(true, gradients && one_pass);
    double loss = 0;
    for (int64_t i = 0; i < num_rows_; ++i)
      loss += double(p_.max_score[i]) - p_.target_score[i] + std::log(double(p_.sum[i]));
    if (gradients && !one_pass) pass(false, true);
    return loss / num_rows_;
  }

 private:
  void pass(bool reduce, bool make_gradients) {
    p_.reduce = reduce, p_.make_gradients = make_gradients;
    for (p_.first_item = 0; p_.first_item < num_items_; p_.first_item += items_) {
      p_.num_items = std::min(items_, num_items_ - p_.first_item);
      p_.first_row = 0, p_.num_rows = std::min(rows_, num_rows_);
      phase(kernels_.pack, p_.chunks(), p_.num_items * p_.dim);
      for (; p_.first_row < num_rows_; p_.first_row += rows_) {
        p_.num_rows = std::min(rows_, num_rows_ - p_.first_row);
        const int64_t blocks = p_.row_blocks(), work = p_.num_rows * p_.num_items;
        phase(kernels_.score, blocks * p_.chunks(), work * p_.dim);
        phase(kernels_.exponentiate, blocks * p_.chunks(), work);
        phase(kernels_.finish, blocks, p_.num_rows * p_.dim);
        if (make_gradients)
          phase(kernels_.gradients, (p_.d_hidden.data ? blocks : 0) + (p_.d_weight.data ? p_.chunks() : 0),
                work * p_.dim);
      }
    }
  }

  void phase(typename Kernels::Phase worker, int64_t num_items, int64_t num_elements) {
    run_workers(worker, p_, num_items, num_elements, kernels_.scratch(p_));
  }

  Params p_;
  const Kernels& kernels_;
  int64_t num_rows_, num_items_;
  int64_t rows_ = 0, items_ = 0;  // size of a block
};

std::tuple<Tensor, Tensor, Tensor> linear_cross_entropy(const Tensor& hidden_, const Tensor& weight_,
                                                        const Tensor& target_, int64_t max_logits, bool return_d_hidden,
                                                        bool return_d_weight) {
  STD_TORCH_CHECK(max_logits > 0, "max_logits must be at least 1");
  const Tensor hidden = with_contiguous_rows(hidden_), weight = with_contiguous_rows(weight_);
  const Tensor target = contiguous(target_);
  check_operands(hidden, weight, target);
  const int64_t t = hidden.size(0), d = hidden.size(1), n = weight.size(0);
  const Tensor loss = make(hidden, {});
  const Tensor d_hidden = make_if(return_d_hidden, hidden, {t, d});
  const Tensor d_weight = make_if(return_d_weight, hidden, {n, d});
  dispatch_float(hidden.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    cpu::LinearCrossEntropyParams<T> p;
    p.dim = d;
    p.hidden = rows<T>(hidden), p.weight = rows<T>(weight);
    p.target = data<int64_t>(target);
    p.scale = static_cast<T>(1.0 / static_cast<double>(t));
    p.d_hidden = mutable_rows<T>(d_hidden), p.d_weight = mutable_rows<T>(d_weight);
    *static_cast<T*>(loss.mutable_data_ptr()) = static_cast<T>(LinearCrossEntropy<T>(p, t, n, max_logits)());
  });
  return {loss, d_hidden, d_weight};
}

}  // namespace
}  // namespace recgrela::ops

STABLE_TORCH_LIBRARY_FRAGMENT(recgrela, m) {
  m.def(
      "linear_cross_entropy(Tensor hidden, Tensor weight, Tensor target, int max_logits, bool return_d_hidden, "
      "bool return_d_weight) -> (Tensor loss, Tensor d_hidden, Tensor d_weight)");
}

STABLE_TORCH_LIBRARY_IMPL(recgrela, CPU, m) {
  m.impl("linear_cross_entropy", TORCH_BOX(&recgrela::ops::linear_cross_entropy));
}
