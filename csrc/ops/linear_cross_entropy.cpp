// linear_cross_entropy on the CPU: divides the scores into blocks and runs the kernels' phases on each.
#include "linear_cross_entropy.h"

#include <cmath>
#include <limits>
#include <utility>

#include "cpu.h"
#include "cpu/linear_cross_entropy.h"

namespace recgrela::ops {
namespace {

void check_target(const LinearCrossEntropy::Operands& a) {
  const int64_t* const t = data<int64_t>(a.target);
  for (int64_t i = 0; i < a.num_rows(); ++i)
    RECGRELA_CHECK(t[i] >= 0 && t[i] < a.num_items(), "target ", t[i], " is out of bounds; there are ", a.num_items(),
                   " items");
}

// One call of the op. Keeps at most max_logits scores in memory, or one panel of kBlockRows rows if that is more. A
// block covers all items if they fit: scores are then computed once instead of twice.
template <typename T>
class Blocks {
 public:
  using Params = cpu::LinearCrossEntropyParams<T>;
  using Kernels = cpu::LinearCrossEntropyKernels<T>;

  Blocks(Params params, int64_t num_rows, int64_t num_items, int64_t max_logits)
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
    const bool gradients = p_.d_hidden.data || p_.d_weight.data || p_.d_bias;
    const Scratch block((r * n + n * p_.dim + n * d + n + r * d + 2 * r * c) * sizeof(T)),
        rows(3 * num_rows_ * sizeof(T));
    T* memory = reinterpret_cast<T*>(block.memory.get());
    auto take = [&](int64_t count) { return std::exchange(memory, memory + count); };
    p_.scores = take(r * n), p_.weight_panels = take(n * p_.dim), p_.weight_rows = take(n * d), p_.scaled = take(r * d);
    p_.bias_panels = take(n);
    p_.chunk_max_score = take(r * c), p_.chunk_sum = take(r * c);
    p_.max_score = reinterpret_cast<T*>(rows.memory.get());
    p_.sum = p_.max_score + num_rows_, p_.target_score = p_.sum + num_rows_;
    std::fill_n(p_.max_score, num_rows_, -std::numeric_limits<T>::infinity());
    std::fill_n(p_.sum, num_rows_, T(0));

    const bool one_pass = items_ >= num_items_;
    pass(true, gradients && one_pass);
    double loss = 0;
    for (int64_t i = 0; i < num_rows_; ++i)
      loss +=
          double(p_.max_score[i]) - double(p_.target_probability) * p_.target_score[i] + std::log(double(p_.sum[i]));
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
          phase(kernels_.gradients, (p_.d_hidden.data ? blocks : 0) + (p_.d_weight.data || p_.d_bias ? p_.chunks() : 0),
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

// Adds label smoothing, -a mean(s) for each row. The mean over rows and items is the product of two mean vectors, which
// also are the gradients' rows up to factors.
template <typename T>
class Smoothing {
 public:
  Smoothing(const LinearCrossEntropy::Operands& a, cpu::LinearCrossEntropyParams<T>& p)
      : d_hidden_(a.dim()), d_weight_(a.dim()) {
    p.target_probability = static_cast<T>(1 - a.label_smoothing);
    p.d_hidden_start = d_hidden_.data(), p.d_weight_start = d_weight_.data();
    if (a.label_smoothing == 0) return;
    const double n = static_cast<double>(a.num_items()), t = static_cast<double>(a.num_rows());
    const std::vector<double> hidden = mean(p.hidden, a.num_rows(), a.dim()),
                              weight = mean(p.weight, a.num_items(), a.dim());
    double mean_score = 0;
    for (int64_t i = 0; p.bias && i < a.num_items(); ++i) mean_score += p.bias[i] / n;
    for (int64_t k = 0; k < a.dim(); ++k) {
      mean_score += hidden[k] * weight[k];
      d_hidden_[k] = static_cast<T>(-a.label_smoothing * weight[k] / t);
      d_weight_[k] = static_cast<T>(-a.label_smoothing * hidden[k] / n);
    }
    p.d_bias_start = static_cast<T>(-a.label_smoothing / n);
    loss_ = -a.label_smoothing * mean_score;
  }

  double loss() const { return loss_; }

 private:
  static std::vector<double> mean(const cpu::RowMatrix<const T>& x, int64_t num_rows, int64_t dim) {
    std::vector<double> sums(dim);
    for (int64_t i = 0; i < num_rows; ++i)
      for (int64_t k = 0; k < dim; ++k) sums[k] += x.row(i)[k];
    for (double& sum : sums) sum /= static_cast<double>(num_rows);
    return sums;
  }

  std::vector<T> d_hidden_, d_weight_;
  double loss_ = 0;
};

struct Cpu {
  static void forward(const LinearCrossEntropy::Operands& a, const LinearCrossEntropy::Outputs& out) {
    RECGRELA_CHECK(a.dtype == a.hidden.scalar_type(), "the CPU kernels compute in the dtype of hidden");
    check_target(a);
    dispatch_float(a.hidden.scalar_type(), [&](auto zero) {
      using T = decltype(zero);
      cpu::LinearCrossEntropyParams<T> p;
      p.dim = a.dim();
      p.hidden = rows<T>(a.hidden), p.weight = rows<T>(a.weight);
      p.target = data<int64_t>(a.target), p.bias = data<T>(a.bias);
      p.scale = static_cast<T>(1.0 / static_cast<double>(a.num_rows()));
      p.d_hidden = mutable_rows<T>(out.d_hidden), p.d_weight = mutable_rows<T>(out.d_weight);
      p.d_bias = mutable_data<T>(out.d_bias);
      const Smoothing<T> smoothing(a, p);
      const double loss = Blocks<T>(p, a.num_rows(), a.num_items(), a.max_logits)() + smoothing.loss();
      *static_cast<T*>(out.loss.mutable_data_ptr()) = static_cast<T>(loss);
    });
  }

  static void backward(const Tensor& d_loss, const LinearCrossEntropy::Gradients& from,
                       const LinearCrossEntropy::Gradients& to) {
    RECGRELA_CHECK(from.d_hidden.scalar_type() == d_loss.scalar_type(),
                   "the CPU kernels take gradients of the dtype of d_loss");
    dispatch_float(d_loss.scalar_type(), [&](auto zero) {
      using T = decltype(zero);
      const T factor = *data<T>(d_loss);
      for (const auto& [source, result] : {std::pair(from.d_hidden, to.d_hidden), std::pair(from.d_weight, to.d_weight),
                                           std::pair(from.d_bias, to.d_bias)}) {
        const T* const x = data<T>(source);
        T* const y = static_cast<T*>(result.mutable_data_ptr());
        torch::stable::parallel_for(0, source.numel(), 1 << 15, [&](int64_t begin, int64_t end) {
          for (int64_t i = begin; i < end; ++i) y[i] = x[i] * factor;
        });
      }
    });
  }
};

}  // namespace
}  // namespace recgrela::ops

RECGRELA_CPU_OP(LinearCrossEntropy)
