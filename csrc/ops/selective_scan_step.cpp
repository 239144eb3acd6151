// selective_scan_step on the CPU.
#include "selective_scan_step.h"

#include "cpu.h"
#include "cpu/selective_scan_step.h"

namespace recgrela::ops {
namespace {

struct Cpu {
  static void forward(const SelectiveScanStep::Operands& o, const Tensor& y) {
    dispatch_float(o.u.scalar_type(), [&](auto zero) {
      using T = decltype(zero);
      cpu::SelectiveScanStepParams<T> p;
      p.groups = cpu::Groups::of(o.batch(), 0);
      p.channels = o.channels(), p.num_states = o.num_states(), p.softplus = o.delta_softplus;
      p.u = rows<T>(o.u), p.delta = rows<T>(o.delta), p.z = rows<T>(o.z), p.B = rows<T>(o.B), p.C = rows<T>(o.C);
      p.A = data<T>(o.A), p.D = data<T>(o.D), p.delta_bias = data<T>(o.delta_bias);
      p.state = state_rows<T>(o.state), p.y = mutable_rows<T>(y);
      run_forward(cpu::selective_scan_step_kernels<T>(), p, p.num_items(), o.state.numel());
    });
  }
};

}  // namespace
}  // namespace recgrela::ops

RECGRELA_CPU_OP(SelectiveScanStep)
