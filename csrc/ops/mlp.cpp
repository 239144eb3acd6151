// mlp on the CPU.
#include "mlp.h"

#include <utility>

#include "cpu/mlp.h"
#include "dropout.h"

namespace recgrela::ops {
namespace {

template <typename T>
cpu::MlpParams<T> make_params(const Mlp::Operands& a) {
  cpu::MlpParams<T> p;
  p.num_rows = a.num_rows(), p.in_features = a.in_features();
  p.hidden_features = a.hidden_features(), p.out_features = a.out_features();
  p.x = rows<T>(a.x), p.w1 = rows<T>(a.w1), p.w2 = rows<T>(a.w2);
  p.b1 = data<T>(a.b1), p.b2 = data<T>(a.b2);
  p.activation = Mlp::activation_as<cpu::Activation>(a.activation);
  p.dropout1 = make_dropout<T>(a.rate, a.seed, 0, 2, a.x, a.hidden_numel());
  p.dropout2 = make_dropout<T>(a.rate, a.seed, 1, 2, a.x, a.out_numel());
  return p;
}

struct Cpu {
  static void forward(const Mlp::Operands& a, const Mlp::Outputs& out) {
    dispatch_float(a.x.scalar_type(), [&](auto zero) {
      using T = decltype(zero);
      auto p = make_params<T>(a);
      p.y = mutable_rows<T>(out.y);
      run_forward(cpu::mlp_kernels<T>(), p, p.num_blocks(), a.work());
    });
  }

  static void backward(const Mlp::Operands& a, const Mlp::Gradients& grads) {
    dispatch_float(a.x.scalar_type(), [&](auto zero) {
      using T = decltype(zero);
      auto p = make_params<T>(a);
      p.set_groups();
      const int64_t n = p.num_weights();
      const Scratch partial(p.num_groups * n * sizeof(T));
      T* const sums = p.gradients = reinterpret_cast<T*>(partial.memory.get());
      p.d_y = rows<T>(grads.d_y), p.d_x = mutable_rows<T>(grads.d_x);
      run_backward(cpu::mlp_kernels<T>(), p, p.num_groups, a.work());
      torch::stable::parallel_for(0, n, 4096, [&](int64_t begin, int64_t end) {
        for (int64_t group = 1; group < p.num_groups; ++group)
          for (int64_t j = begin; j < end; ++j) sums[j] += sums[group * n + j];
      });
      const T* from = sums;
      for (const Tensor* to : {&grads.d_w1, &grads.d_w2, &grads.d_b1, &grads.d_b2})
        std::copy_n(std::exchange(from, from + to->numel()), to->numel(), static_cast<T*>(to->mutable_data_ptr()));
    });
  }
};

}  // namespace
}  // namespace recgrela::ops

RECGRELA_CPU_OP(Mlp)
