// gated_rela_step on the CPU.
#include "gated_rela_step.h"

#include "cpu.h"
#include "cpu/gated_rela_step.h"

namespace recgrela::ops {
namespace {

struct Cpu {
  static void forward(const GatedRelaStep::Operands& a, const Tensor& y) {
    dispatch_float(a.v.scalar_type(), [&](auto zero) {
      using T = decltype(zero);
      cpu::GatedRelaStepParams<T> p;
      p.groups = cpu::Groups::of(a.batch(), 0);
      p.num_heads = a.num_heads, p.head_dim = a.head_dim(), p.kernel_size = a.kernel_size();
      p.eps = static_cast<T>(a.eps);
      p.q = rows<T>(a.q), p.k = rows<T>(a.k), p.v = rows<T>(a.v), p.g = rows<T>(a.g);
      if (!a.k) p.k = {p.q.data + a.width(), p.q.stride};
      p.turns = data<int64_t>(a.turns);
      p.conv_weight = data<T>(a.conv_weight), p.conv_bias = data<T>(a.conv_bias);
      p.kv_state = state_rows<T>(a.kv_state), p.history = state_rows<T>(a.history);
      p.position = state_rows<int64_t>(a.position), p.y = mutable_rows<T>(y);
      run_forward(cpu::gated_rela_step_kernels<T>(), p, p.num_items(), a.kv_state.numel());
    });
  }
};

}  // namespace
}  // namespace recgrela::ops

RECGRELA_CPU_OP(GatedRelaStep)
