// causal_conv1d on the CPU.
#include "causal_conv1d.h"

#include "cpu.h"
#include "cpu/causal_conv1d.h"

namespace recgrela::ops {
namespace {

template <typename T>
cpu::CausalConv1dParams<T> make_params(const CausalConv1d::Operands& a, const Sequences& sequences) {
  cpu::CausalConv1dParams<T> p;
  p.groups = cpu::Groups::of(sequences.count(), a.weight.numel());
  p.channels = a.channels();
  p.kernel_size = a.kernel_size();
  p.silu = a.silu;
  p.cu_seqlens = sequences.offsets.data();
  p.x = rows<T>(a.x);
  p.weight = data<T>(a.weight), p.bias = data<T>(a.bias);
  p.initial_history = data<T>(a.initial_history);
  return p;
}

struct Cpu {
  static void forward(const CausalConv1d::Operands& a, const CausalConv1d::Outputs& out) {
    const Sequences sequences = read_sequences(a.cu_seqlens, a.num_rows());
    dispatch_float(a.x.scalar_type(), [&](auto zero) {
      using T = decltype(zero);
      auto p = make_params<T>(a, sequences);
      p.y = mutable_rows<T>(out.y);
      p.final_history = mutable_data<T>(out.final_history);
      run_forward(cpu::causal_conv1d_kernels<T>(), p, p.num_items(), a.x.numel());
    });
  }

  static void backward(const CausalConv1d::Operands& a, const CausalConv1d::Gradients& grads) {
    const Sequences sequences = read_sequences(a.cu_seqlens, a.num_rows());
    dispatch_float(a.x.scalar_type(), [&](auto zero) {
      using T = decltype(zero);
      auto p = make_params<T>(a, sequences);
      PartialSums<T> d_weight(p.groups.count, grads.d_weight), d_bias(p.groups.count, grads.d_bias);
      p.d_y = rows<T>(grads.d_y), p.d_x = mutable_rows<T>(grads.d_x);
      p.d_weight = d_weight.data(), p.d_bias = d_bias.data();
      p.d_final_history = data<T>(grads.d_final_history);
      p.d_initial_history = mutable_data<T>(grads.d_initial_history);
      run_backward(cpu::causal_conv1d_kernels<T>(), p, p.num_items(), a.x.numel());
      d_weight.add_up(), d_bias.add_up();
    });
  }
};

}  // namespace
}  // namespace recgrela::ops

RECGRELA_CPU_OP(CausalConv1d)
