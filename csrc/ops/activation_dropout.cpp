// The operator activation_dropout.
#include <array>
#include <cmath>
#include <string>

#include "common.h"

namespace recgrela::ops {
namespace {

cpu::Activation activation_named(const std::string& name) {
  constexpr std::array kNames{"none", "relu", "silu", "gelu"};  // in the order of cpu::Activation
  const auto found = std::find(kNames.begin(), kNames.end(), name);
  STD_TORCH_CHECK(found != kNames.end(), "activation must be none, relu, silu or gelu, not ", name);
  return static_cast<cpu::Activation>(found - kNames.begin());
}

Tensor run_activation_dropout(const Tensor* dy_, const Tensor& x_, const Tensor& seed, const std::string& activation,
                              double rate) {
  STD_TORCH_CHECK(x_.is_cpu(), "x must be on the CPU");
  STD_TORCH_CHECK(seed.is_cpu() && seed.scalar_type() == ScalarType::Long && seed.numel() == 1,
                  "seed must be one int64 on the device of x");
  STD_TORCH_CHECK(rate >= 0 && rate < 1, "rate must be at least 0 and below 1, not ", rate);
  const Tensor x = torch::stable::contiguous(x_);
  OptTensor dy;
  if (dy_) {
    dy = torch::stable::contiguous(*dy_);
    STD_TORCH_CHECK(dy->is_cpu() && dy->scalar_type() == x.scalar_type() && dy->numel() == x.numel(),
                    "dy must have the shape, dtype and device of x");
  }
  const Tensor out = torch::stable::empty_like(x);
  dispatch_float(x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    cpu::ActivationDropoutParams<T> p;
    p.numel = x.numel();
    p.activation = activation_named(activation);
    p.seed = static_cast<uint64_t>(*static_cast<const int64_t*>(seed.const_data_ptr()));
    constexpr double kDraws = 4294967296.0;
    const double dropped = std::min(std::nearbyint(rate * kDraws), kDraws - 1);
    p.threshold = static_cast<uint32_t>(dropped);
    p.scale = static_cast<T>(kDraws / (kDraws - dropped));
    p.x = static_cast<const T*>(x.const_data_ptr());
    p.dy = data<T>(dy);
    p.out = static_cast<T*>(out.mutable_data_ptr());
    const auto& kernels = cpu::kernels<T>();
    run<T>(dy ? kernels.activation_dropout_backward : kernels.activation_dropout_forward, p, p.num_items(), p.numel, 0);
  });
  return out;
}

Tensor activation_dropout(const Tensor& x, const Tensor& seed, std::string activation, double rate) {
  return run_activation_dropout(nullptr, x, seed, activation, rate);
}

Tensor activation_dropout_backward(const Tensor& dy, const Tensor& x, const Tensor& seed, std::string activation,
                                   double rate) {
  return run_activation_dropout(&dy, x, seed, activation, rate);
}

}  // namespace
}  // namespace recgrela::ops

STABLE_TORCH_LIBRARY_FRAGMENT(recgrela, m) {
  m.def("activation_dropout(Tensor x, Tensor seed, str activation, float rate) -> Tensor");
  m.def("activation_dropout_backward(Tensor dy, Tensor x, Tensor seed, str activation, float rate) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(recgrela, CPU, m) {
  m.impl("activation_dropout", TORCH_BOX(&recgrela::ops::activation_dropout));
  m.impl("activation_dropout_backward", TORCH_BOX(&recgrela::ops::activation_dropout_backward));
}
