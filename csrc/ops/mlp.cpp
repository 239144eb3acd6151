// The operator mlp: two linear layers, an activation between them and dropout behind each.
#include <array>
#include <string>

#include "dropout.h"

namespace recgrela::ops {
namespace {

cpu::Activation activation_named(const std::string& name) {
  constexpr std::array kNames{"none", "relu", "silu", "gelu"};  // in the order of cpu::Activation
  const auto found = std::find(kNames.begin(), kNames.end(), name);
  STD_TORCH_CHECK(found != kNames.end(), "activation must be none, relu, silu or gelu, not ", name);
  return static_cast<cpu::Activation>(found - kNames.begin());
}

struct MlpArgs {
  Tensor x, w1, b1, w2, b2;
  OptTensor seed;
  cpu::Activation activation;
  double rate;

  MlpArgs(const Tensor& x_, const Tensor& w1_, const Tensor& b1_, const Tensor& w2_, const Tensor& b2_,
          const OptTensor& seed_, const std::string& activation_, double rate_)
      : x(with_contiguous_rows(x_)),
        w1(with_contiguous_rows(w1_)),
        b1(torch::stable::contiguous(b1_)),
        w2(with_contiguous_rows(w2_)),
        b2(torch::stable::contiguous(b2_)),
        seed(contiguous(seed_)),
        activation(activation_named(activation_)),
        rate(rate_) {
    auto check = [&](const Tensor& t, int64_t dim, const char* what) {
      STD_TORCH_CHECK(t.is_cpu() && t.scalar_type() == x.scalar_type() && t.dim() == dim, what,
                      ", on the CPU and of one dtype");
    };
    check(x, 2, "x must be [T, I]");
    check(w1, 2, "w1 must be [F, I]");
    check(b1, 1, "b1 must be [F]");
    check(w2, 2, "w2 must be [O, F]");
    check(b2, 1, "b2 must be [O]");
    STD_TORCH_CHECK(x.size(1) > 0 && w1.size(0) > 0 && w2.size(0) > 0, "I, F and O must not be 0");
    STD_TORCH_CHECK(
        w1.size(1) == x.size(1) && b1.size(0) == w1.size(0) && w2.size(1) == w1.size(0) && b2.size(0) == w2.size(0),
        "x [T, I], w1 [F, I], b1 [F], w2 [O, F] and b2 [O] must fit together");
  }

  template <typename T>
  cpu::MlpParams<T> params() const {
    cpu::MlpParams<T> p;
    p.num_rows = x.size(0), p.in_features = x.size(1), p.hidden_features = w1.size(0), p.out_features = w2.size(0);
    p.x = rows<T>(x), p.w1 = rows<T>(w1), p.w2 = rows<T>(w2);
    p.b1 = static_cast<const T*>(b1.const_data_ptr()), p.b2 = static_cast<const T*>(b2.const_data_ptr());
    p.activation = activation;
    p.dropout1 = dropout_of<T>(rate, seed, 0, 2, p.num_rows * p.hidden_features);
    p.dropout2 = dropout_of<T>(rate, seed, 1, 2, p.num_rows * p.out_features);
    return p;
  }

  int64_t work() const { return x.size(0) * w1.size(0) * (x.size(1) + w2.size(0)); }
};

Tensor mlp(const Tensor& x, const Tensor& w1, const Tensor& b1, const Tensor& w2, const Tensor& b2,
           const OptTensor& seed, std::string activation, double rate) {
  const MlpArgs args(x, w1, b1, w2, b2, seed, activation, rate);
  const Tensor y = torch::stable::new_empty(x, {x.size(0), w2.size(0)});
  dispatch_float(x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    auto p = args.params<T>();
    p.y = mutable_rows<T>(y);
    run<T>(cpu::kernels<T>().mlp, p, false, p.num_items(false), args.work());
  });
  return y;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> mlp_backward(const Tensor& dy_, const Tensor& x, const Tensor& w1,
                                                                const Tensor& b1, const Tensor& w2, const Tensor& b2,
                                                                const OptTensor& seed, std::string activation,
                                                                double rate) {
  const MlpArgs args(x, w1, b1, w2, b2, seed, activation, rate);
  const Tensor dy = with_contiguous_rows(dy_);
  const int64_t m = x.size(0), i = x.size(1), f = w1.size(0), o = w2.size(0);
  STD_TORCH_CHECK(
      dy.is_cpu() && dy.scalar_type() == x.scalar_type() && dy.dim() == 2 && dy.size(0) == m && dy.size(1) == o,
      "dy must be [T, O], of the dtype and device of x");
  const Tensor dx = torch::stable::new_empty(x, {m, i});
  const Tensor dw1 = torch::stable::new_empty(x, {f, i}), db1 = torch::stable::new_empty(x, {f});
  const Tensor dw2 = torch::stable::new_empty(x, {o, f}), db2 = torch::stable::new_empty(x, {o});
  dispatch_float(x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    auto p = args.params<T>();
    constexpr int64_t kBlock = cpu::MlpParams<T>::kRowBlock;
    const int64_t blocks = (m + kBlock - 1) / kBlock;
    p.rows_per_group = std::max<int64_t>(2, (blocks + p.kMaxGroups - 1) / p.kMaxGroups) * kBlock;
    p.num_groups = std::max<int64_t>(1, (m + p.rows_per_group - 1) / p.rows_per_group);
    const int64_t n = p.num_weights();
    const Scratch partial(p.num_groups * n * sizeof(T));
    T* const sums = p.gradients = reinterpret_cast<T*>(partial.memory.get());
    p.dy = rows<T>(dy), p.dx = mutable_rows<T>(dx);
    run<T>(cpu::kernels<T>().mlp, p, true, p.num_items(true), args.work());
    torch::stable::parallel_for(0, n, 4096, [&](int64_t begin, int64_t end) {
      for (int64_t group = 1; group < p.num_groups; ++group)
        for (int64_t j = begin; j < end; ++j) sums[j] += sums[group * n + j];
    });
    const T* from = sums;
    for (const Tensor* to : {&dw1, &dw2, &db1, &db2})
      std::copy_n(std::exchange(from, from + to->numel()), to->numel(), static_cast<T*>(to->mutable_data_ptr()));
  });
  return {dx, dw1, db1, dw2, db2};
}

}  // namespace
}  // namespace recgrela::ops

STABLE_TORCH_LIBRARY_FRAGMENT(recgrela, m) {
  m.def(
      "mlp(Tensor x, Tensor w1, Tensor b1, Tensor w2, Tensor b2, Tensor? seed, str activation, float rate) -> Tensor");
  m.def(
      "mlp_backward(Tensor dy, Tensor x, Tensor w1, Tensor b1, Tensor w2, Tensor b2, Tensor? seed, str activation, "
      "float rate) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(recgrela, CPU, m) {
  m.impl("mlp", TORCH_BOX(&recgrela::ops::mlp));
  m.impl("mlp_backward", TORCH_BOX(&recgrela::ops::mlp_backward));
}
