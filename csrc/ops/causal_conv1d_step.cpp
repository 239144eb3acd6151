// causal_conv1d_step on the CPU.
#include "causal_conv1d_step.h"

#include "cpu.h"
#include "cpu/causal_conv1d_step.h"

namespace recgrela::ops {
namespace {

struct Cpu {
  static void forward(const CausalConv1dStep::Operands& o, const Tensor& y) {
    dispatch_float(o.x.scalar_type(), [&](auto zero) {
      using T = decltype(zero);
      cpu::CausalConv1dStepParams<T> p;
      p.groups = cpu::Groups::of(o.batch(), 0);
      p.channels = o.channels(), p.kernel_size = o.kernel_size(), p.silu = o.silu;
      p.x = rows<T>(o.x), p.weight = data<T>(o.weight), p.bias = data<T>(o.bias);
      p.history = state_rows<T>(o.history), p.y = mutable_rows<T>(y);
      run_forward(cpu::causal_conv1d_step_kernels<T>(), p, p.num_items(), o.x.numel() * o.kernel_size());
    });
  }
};

}  // namespace
}  // namespace recgrela::ops

RECGRELA_CPU_OP(CausalConv1dStep)
