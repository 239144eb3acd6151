// The operator linear_cross_entropy: plans blocks of scores and runs the kernels' phases over them.
#include <cmath>
#include <limits>

#include "common.h"

namespace recgrela::ops {
namespace {

void check_operands(const Tensor& hidden, const Tensor& weight, const Tensor& target) {
  STD_TORCH_CHECK(hidden.is_cpu() && hidden.dim() == 2 && hidden.size(0) > 0 && hidden.size(1) > 0,
                  "hidden must be [T, D], not empty");
  STD_TORCH_CHECK(weight.is_cpu() && weight.scalar_type() == hidden.scalar_type() && weight.dim() == 2 &&
                      weight.size(0) > 0 && weight.size(1) == hidden.size(1),
                  "weight must be [n_items, D], of the dtype and device of hidden");
  STD_TORCH_CHECK(target.is_cpu() && target.scalar_type() == ScalarType::Long && target.dim() == 1 &&
                      target.size(0) == hidden.size(0),
                  "target must be [T] int64, on the device of hidden");
  const int64_t* const t = static_cast<const int64_t*>(target.const_data_ptr());
  for (int64_t i = 0; i < target.size(0); ++i)
    STD_TORCH_CHECK(t[i] >= 0 && t[i] < weight.size(0), "target ", t[i], " is out of bounds: there are ",
                    weight.size(0), " items");
}

// One call of the op. It holds no more than max_logits scores, but at least a panel of a block of rows. All items
// at once where they fit, since the scores are then made once and not twice.
template <typename T>
class LinearCrossEntropy {
 public:
  using Params = cpu::LinearCrossEntropyParams<T>;

  LinearCrossEntropy(Params params, int64_t num_rows, int64_t num_items, int64_t max_logits)
      : p_(params), kernels_(cpu::kernels<T>().linear_cross_entropy), num_rows_(num_rows), num_items_(num_items) {
    p_.lanes = kernels_.lanes, p_.panel_width = kernels_.panel_width;
    p_.chunk_panels = Params::kChunkItems / p_.panel_width;
    constexpr int64_t kBlock = Params::kRowBlock;
    const int64_t all_rows = padded(num_rows, kBlock), all_items = padded(num_items, p_.panel_width);
    if (const int64_t beside_all_items = max_logits / all_items / kBlock * kBlock; beside_all_items > 0) {
      rows_ = std::min(beside_all_items, all_rows), items_ = all_items;
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
    p_.chunk_highest = take(r * c), p_.chunk_sum = take(r * c);
    p_.highest = reinterpret_cast<T*>(rows.memory.get());
    p_.sum = p_.highest + num_rows_, p_.target_score = p_.sum + num_rows_;
    std::fill_n(p_.highest, num_rows_, -std::numeric_limits<T>::infinity());
    std::fill_n(p_.sum, num_rows_, T(0));

    const bool one_pass = items_ >= num_items_;
    pass(true, gradients && one_pass);
    double loss = 0;
    for (int64_t i = 0; i < num_rows_; ++i)
      loss += double(p_.highest[i]) - p_.target_score[i] + std::log(double(p_.sum[i]));
    if (gradients && !one_pass) pass(false, true);
    return loss / num_rows_;
  }

 private:
  static int64_t padded(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

  void pass(bool reduce, bool make_gradients) {
    p_.reduce = reduce, p_.make_gradients = make_gradients;
    for (p_.item0 = 0; p_.item0 < num_items_; p_.item0 += items_) {
      p_.num_items = std::min(items_, num_items_ - p_.item0);
      p_.row0 = 0, p_.num_rows = std::min(rows_, num_rows_);
      phase(kernels_.pack, p_.chunks(), p_.num_items * p_.dim);
      for (; p_.row0 < num_rows_; p_.row0 += rows_) {
        p_.num_rows = std::min(rows_, num_rows_ - p_.row0);
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

  void phase(typename cpu::Kernels<T>::LinearCrossEntropy::Phase worker, int64_t num_items, int64_t num_elements) {
    p_.num_items_of_work = num_items;
    run<T>(worker, p_, num_items, num_elements, kernels_.scratch(p_));
  }

  Params p_;
  const typename cpu::Kernels<T>::LinearCrossEntropy& kernels_;
  int64_t num_rows_, num_items_;
  int64_t rows_ = 0, items_ = 0;  // of a block
};

// A gradient that is not asked for is empty.
std::tuple<Tensor, Tensor, Tensor> linear_cross_entropy(const Tensor& hidden_, const Tensor& weight_,
                                                        const Tensor& target_, int64_t max_logits, bool hidden_grad,
                                                        bool weight_grad) {
  const Tensor hidden = with_contiguous_rows(hidden_), weight = with_contiguous_rows(weight_);
  const Tensor target = torch::stable::contiguous(target_);
  STD_TORCH_CHECK(max_logits > 0, "max_logits must be at least 1");
  check_operands(hidden, weight, target);
  const int64_t t = hidden.size(0), d = hidden.size(1), n = weight.size(0);
  const Tensor loss = torch::stable::new_empty(hidden, {});
  const Tensor d_hidden =
      hidden_grad ? torch::stable::new_empty(hidden, {t, d}) : torch::stable::new_empty(hidden, {0});
  const Tensor d_weight =
      weight_grad ? torch::stable::new_empty(weight, {n, d}) : torch::stable::new_empty(weight, {0});
  dispatch_float(hidden.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    cpu::LinearCrossEntropyParams<T> p;
    p.dim = d;
    p.hidden = rows<T>(hidden), p.weight = rows<T>(weight);
    p.target = static_cast<const int64_t*>(target.const_data_ptr());
    p.scale = static_cast<T>(1.0 / static_cast<double>(t));
    if (hidden_grad) p.d_hidden = mutable_rows<T>(d_hidden);
    if (weight_grad) p.d_weight = mutable_rows<T>(d_weight);
    *static_cast<T*>(loss.mutable_data_ptr()) = static_cast<T>(LinearCrossEntropy<T>(p, t, n, max_logits)());
  });
  return {loss, d_hidden, d_weight};
}

}  // namespace
}  // namespace recgrela::ops

STABLE_TORCH_LIBRARY_FRAGMENT(recgrela, m) {
  m.def(
      "linear_cross_entropy(Tensor hidden, Tensor weight, Tensor target, int max_logits, bool hidden_grad, bool "
      "weight_grad) -> (Tensor loss, Tensor d_hidden, Tensor d_weight)");
}

STABLE_TORCH_LIBRARY_IMPL(recgrela, CPU, m) {
  m.impl("linear_cross_entropy", TORCH_BOX(&recgrela::ops::linear_cross_entropy));
}
