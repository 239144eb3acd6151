// add_norm on the CPU.
#include "add_norm.h"

#include "cpu/add_norm.h"
#include "dropout.h"

namespace recgrela::ops {
namespace {

template <typename T>
cpu::AddNormParams<T> make_params(const AddNorm::Operands& a) {
  RECGRELA_CHECK(a.dtype == a.x.scalar_type(), "the CPU kernels take operands of one dtype");
  cpu::AddNormParams<T> p;
  p.num_rows = a.num_rows(), p.width = a.width();
  p.post_norm = a.post_norm, p.eps = static_cast<T>(a.eps);
  p.x = rows<T>(a.x), p.z = rows<T>(a.z);
  p.weight = data<T>(a.weight), p.bias = data<T>(a.bias);
  p.sequence = data<int64_t>(a.sequence);
  p.dropout = make_dropout<T>(a.dropout, a.seed, 0, 2, a.x, a.x.numel());
  p.drop_path = make_dropout<T>(a.drop_path, a.seed, 1, 2, a.x, a.num_rows());
  return p;
}

struct Cpu {
  static void forward(const AddNorm::Operands& a, const AddNorm::Outputs& out) {
    dispatch_float(a.x.scalar_type(), [&](auto zero) {
      using T = decltype(zero);
      auto p = make_params<T>(a);
      p.residual = mutable_rows<T>(out.residual), p.normed = mutable_rows<T>(out.normed);
      run_forward(cpu::add_norm_kernels<T>(), p, p.num_items(), a.x.numel());
    });
  }

  static void backward(const AddNorm::Operands& a, const AddNorm::Gradients& grads) {
    dispatch_float(a.x.scalar_type(), [&](auto zero) {
      using T = decltype(zero);
      auto p = make_params<T>(a);
      PartialSums<T> d_weight(p.num_items(), grads.d_weight), d_bias(p.num_items(), grads.d_bias);
      p.d_residual = rows<T>(grads.d_residual), p.d_normed = rows<T>(grads.d_normed);
      p.d_x = mutable_rows<T>(grads.d_x), p.d_z = mutable_rows<T>(grads.d_z);
      p.d_weight = d_weight.data(), p.d_bias = d_bias.data();
      run_backward(cpu::add_norm_kernels<T>(), p, p.num_items(), a.x.numel());
      d_weight.add_up(), d_bias.add_up();
    });
  }
};

}  // namespace
}  // namespace recgrela::ops

RECGRELA_CPU_OP(AddNorm)
