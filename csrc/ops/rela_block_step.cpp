// rela_block_step on the CPU.
#include "rela_block_step.h"

#include "cpu.h"
#include "cpu/rela_block_step.h"

namespace recgrela::ops {
namespace {

template <typename T>
cpu::StepLayer<T> layer(const OptTensor& weight, const OptTensor& bias) {
  return {rows<T>(weight), data<T>(bias)};
}

struct Cpu {
  static void forward(const RelaBlockStep::Operands& a, const Tensor& y) {
    dispatch_float(a.x.scalar_type(), [&](auto zero) {
      using T = decltype(zero);
      cpu::RelaBlockStepParams<T> p;
      p.num_rows = a.batch(), p.hidden_features = a.hidden_features();
      p.norm_eps = static_cast<T>(a.norm_eps);
      p.activation = Mlp::activation_as<cpu::Activation>(a.activation);
      p.x = rows<T>(a.x), p.y = mutable_rows<T>(y);
      p.in = layer<T>(a.in_weight, a.in_bias), p.gate = layer<T>(a.gate_weight, a.gate_bias);
      p.qk = layer<T>(a.qk_weight, a.qk_bias), p.out = layer<T>(a.out_weight, a.out_bias);
      p.up = layer<T>(a.w1, a.b1), p.down = layer<T>(a.w2, a.b2);
      p.norm1_weight = data<T>(a.norm1_weight), p.norm1_bias = data<T>(a.norm1_bias);
      p.norm2_weight = data<T>(a.norm2_weight), p.norm2_bias = data<T>(a.norm2_bias);

      cpu::GatedRelaStepParams<T>& rela = p.rela;
      rela.num_heads = a.num_heads, rela.head_dim = a.head_dim(), rela.kernel_size = a.kernel_size();
      rela.eps = static_cast<T>(a.eps);
      rela.turns = data<int64_t>(a.turns);
      rela.conv_weight = data<T>(a.conv_weight), rela.conv_bias = data<T>(a.conv_bias);
      rela.kv_state = state_rows<T>(a.kv_state), rela.history = state_rows<T>(a.history);
      rela.position = state_rows<int64_t>(a.position);
      run_forward(cpu::rela_block_step_kernels<T>(), p, p.num_items(), a.work());
    });
  }
};

}  // namespace
}  // namespace recgrela::ops

RECGRELA_CPU_OP(RelaBlockStep)
