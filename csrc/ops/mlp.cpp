// The operator mlp: two linear layers, an activation between them, and dropout after each.
#include "cpu/mlp.h"

#include <array>
#include <utility>

#include "dropout.h"

namespace recgrela::ops {
namespace {

struct Operands {
  Tensor x, w1, b1, w2, b2;
  OptTensor seed;
  std::string activation;
  double rate;

  int64_t num_rows() const { return x.size(0); }
  int64_t in_features() const { return x.size(1); }
  int64_t hidden_features() const { return w1.size(0); }
  int64_t out_features() const { return w2.size(0); }
  int64_t work() const { return num_rows() * hidden_features() * (in_features() + out_features()); }
};

Operands parse(Operands a) {
  const ScalarType type = a.x.scalar_type();
  check_operand(a.x, a.x, type, {-1, -1}, "x");
  check_operand(a.w1, a.x, type, {-1, a.in_features()}, "w1");
  check_operand(a.b1, a.x, type, {a.hidden_features()}, "b1");
  check_operand(a.w2, a.x, type, {-1, a.hidden_features()}, "w2");
  check_operand(a.b2, a.x, type, {a.out_features()}, "b2");
  STD_TORCH_CHECK(a.in_features() > 0 && a.hidden_features() > 0 && a.out_features() > 0,
                  "x, w1 and w2 must have at least one feature");
  a.x = with_contiguous_rows(a.x), a.w1 = with_contiguous_rows(a.w1), a.w2 = with_contiguous_rows(a.w2);
  a.b1 = contiguous(a.b1), a.b2 = contiguous(a.b2), a.seed = contiguous(a.seed);
  return a;
}

cpu::Activation activation_named(const std::string& name) {
  constexpr std::array kNames{"none", "relu", "silu", "gelu"};  // in the order of cpu::Activation
  const auto found = std::find(kNames.begin(), kNames.end(), name);
  STD_TORCH_CHECK(found != kNames.end(), "activation must be none, relu, silu or gelu, not ", name);
  return static_cast<cpu::Activation>(found - kNames.begin());
}

template <typename T>
cpu::MlpParams<T> make_params(const Operands& a) {
  cpu::MlpParams<T> p;
  p.num_rows = a.num_rows(), p.in_features = a.in_features();
  p.hidden_features = a.hidden_features(), p.out_features = a.out_features();
  p.x = rows<T>(a.x), p.w1 = rows<T>(a.w1), p.w2 = rows<T>(a.w2);
  p.b1 = data<T>(a.b1), p.b2 = data<T>(a.b2);
  p.activation = activation_named(a.activation);
  p.dropout1 = make_dropout<T>(a.rate, a.seed, 0, 2, a.x, p.num_rows * p.hidden_features);
  p.dropout2 = make_dropout<T>(a.rate, a.seed, 1, 2, a.x, p.num_rows * p.out_features);
  return p;
}

Tensor mlp(const Tensor& x, const Tensor& w1, const Tensor& b1, const Tensor& w2, const Tensor& b2,
           const OptTensor& seed, std::string activation, double rate) {
  const Operands a = parse({x, w1, b1, w2, b2, seed, activation, rate});
  const Tensor y = make(a.x, {a.num_rows(), a.out_features()});
  dispatch_float(a.x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    auto p = make_params<T>(a);
    p.y = mutable_rows<T>(y);
    run_forward(cpu::mlp_kernels<T>(), p, p.num_blocks(), a.work());
  });
  return y;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> mlp_backward(const Tensor& d_y_, const Tensor& x, const Tensor& w1,
                                                                const Tensor& b1, const Tensor& w2, const Tensor& b2,
                                                                const OptTensor& seed, std::string activation,
                                                                double rate) {
  const Operands a = parse({x, w1, b1, w2, b2, seed, activation, rate});
  check_operand(d_y_, a.x, a.x.scalar_type(), {a.num_rows(), a.out_features()}, "d_y");
  const Tensor d_y = with_contiguous_rows(d_y_), d_x = make_like(a.x);
  const Tensor d_w1 = make_like(a.w1), d_b1 = make_like(a.b1), d_w2 = make_like(a.w2), d_b2 = make_like(a.b2);
  dispatch_float(a.x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    auto p = make_params<T>(a);
    p.set_groups();
    const int64_t n = p.num_weights();
    const Scratch partial(p.num_groups * n * sizeof(T));
    T* const sums = p.gradients = reinterpret_cast<T*>(partial.memory.get());
    p.d_y = rows<T>(d_y), p.d_x = mutable_rows<T>(d_x);
    run_backward(cpu::mlp_kernels<T>(), p, p.num_groups, a.work());
    torch::stable::parallel_for(0, n, 4096, [&](int64_t begin, int64_t end) {
      for (int64_t group = 1; group < p.num_groups; ++group)
        for (int64_t j = begin; j < end; ++j) sums[j] += sums[group * n + j];
    });
    const T* from = sums;
    for (const Tensor* to : {&d_w1, &d_w2, &d_b1, &d_b2})
      std::copy_n(std::exchange(from, from + to->numel()), to->numel(), static_cast<T*>(to->mutable_data_ptr()));
  });
  return {d_x, d_w1, d_b1, d_w2, d_b2};
}

}  // namespace
}  // namespace recgrela::ops

STABLE_TORCH_LIBRARY_FRAGMENT(recgrela, m) {
  m.def(
      "mlp(Tensor x, Tensor w1, Tensor b1, Tensor w2, Tensor b2, Tensor? seed, str activation, float rate) -> "
      "Tensor y");
  m.def(
      "mlp_backward(Tensor d_y, Tensor x, Tensor w1, Tensor b1, Tensor w2, Tensor b2, Tensor? seed, str activation, "
      "float rate) -> (Tensor d_x, Tensor d_w1, Tensor d_b1, Tensor d_w2, Tensor d_b2)");
}

STABLE_TORCH_LIBRARY_IMPL(recgrela, CPU, m) {
  m.impl("mlp", TORCH_BOX(&recgrela::ops::mlp));
  m.impl("mlp_backward", TORCH_BOX(&recgrela::ops::mlp_backward));
}
