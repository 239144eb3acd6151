// gated_rela on the CPU.
#include "gated_rela.h"

#include "cpu.h"
#include "cpu/gated_rela.h"

namespace recgrela::ops {
namespace {

// Checks that the rotary table covers every position of the sequences.
void check_positions(const GatedRela::Operands& a, const Sequences& sequences) {
  check_rotary_length(a.rotary, sequences.max_seqlen);
  if (!a.initial_position) return;
  const int64_t positions = a.rotary ? a.rotary->size(0) : INT64_MAX;
  const int64_t* const position = data<int64_t>(a.initial_position);
  for (int64_t i = 0; i < a.batch(); ++i) {
    RECGRELA_CHECK(position[i] >= 0, "initial_position must not be negative; it is at index ", i);
    const int64_t length = sequences.offsets[i + 1] - sequences.offsets[i];
    RECGRELA_CHECK(length <= positions - position[i], "the rotary table has ", positions, " positions; sequence ", i,
                   " has ", length, " rows and the initial position ", position[i]);
  }
}

// Returns k, given a matrix whose rows contain q and k side by side.
template <typename T>
cpu::RowMatrix<T> second_half(const cpu::RowMatrix<T>& qk, int64_t width) {
  return {qk.data + width, qk.stride};
}

template <typename T>
cpu::GatedRelaParams<T> make_params(const GatedRela::Operands& a, const Sequences& sequences) {
  check_positions(a, sequences);
  cpu::GatedRelaParams<T> p;
  p.groups = cpu::Groups::of(sequences.count(), a.width() * a.kernel_size());
  p.max_seqlen = sequences.max_seqlen;
  p.num_heads = a.num_heads, p.head_dim = a.head_dim();
  p.set_heads_per_item(torch::stable::get_num_threads());
  p.kernel_size = a.kernel_size();
  p.causal = a.causal, p.eps = static_cast<T>(a.eps);
  p.cu_seqlens = sequences.offsets.data();
  p.q = rows<T>(a.q), p.v = rows<T>(a.v), p.g = rows<T>(a.g);
  p.k = a.k ? rows<T>(a.k) : second_half(p.q, a.width());
  p.rotary = data<T>(a.rotary), p.conv_weight = data<T>(a.conv_weight), p.conv_bias = data<T>(a.conv_bias);
  p.initial_kv_state = data<T>(a.initial_kv_state), p.initial_history = data<T>(a.initial_history);
  p.initial_position = data<int64_t>(a.initial_position);
  return p;
}

struct Cpu {
  static void forward(const GatedRela::Operands& a, const GatedRela::Outputs& out) {
    GatedRela::check_state(a, mutable_data<char>(out.final_kv_state));
    const Sequences sequences = read_sequences(a.cu_seqlens, a.num_rows());
    dispatch_float(a.v.scalar_type(), [&](auto zero) {
      using T = decltype(zero);
      auto p = make_params<T>(a, sequences);
      p.y = mutable_rows<T>(out.y);
      p.final_kv_state = mutable_data<T>(out.final_kv_state), p.final_history = mutable_data<T>(out.final_history);
      p.final_position = mutable_data<int64_t>(out.final_position);
      run_forward(cpu::gated_rela_kernels<T>(), p, p.num_items(), a.v.numel());
    });
  }

  static void backward(const GatedRela::Operands& a, const GatedRela::Gradients& grads) {
    const Sequences sequences = read_sequences(a.cu_seqlens, a.num_rows());
    dispatch_float(a.v.scalar_type(), [&](auto zero) {
      using T = decltype(zero);
      auto p = make_params<T>(a, sequences);
      PartialSums<T> d_conv_weight(p.groups.count, grads.d_conv_weight);
      PartialSums<T> d_conv_bias(p.groups.count, grads.d_conv_bias);
      p.d_y = rows<T>(grads.d_y);
      p.d_q = mutable_rows<T>(grads.d_q), p.d_v = mutable_rows<T>(grads.d_v), p.d_g = mutable_rows<T>(grads.d_g);
      p.d_k = a.k ? mutable_rows<T>(grads.d_k) : second_half(p.d_q, a.width());
      p.d_conv_weight = d_conv_weight.data(), p.d_conv_bias = d_conv_bias.data();
      p.d_final_kv_state = data<T>(grads.d_final_kv_state), p.d_final_history = data<T>(grads.d_final_history);
      p.d_initial_kv_state = mutable_data<T>(grads.d_initial_kv_state);
      p.d_initial_history = mutable_data<T>(grads.d_initial_history);
      run_backward(cpu::gated_rela_kernels<T>(), p, p.num_items(), a.v.numel());
      d_conv_weight.add_up(), d_conv_bias.add_up();
    });
  }
};

}  // namespace
}  // namespace recgrela::ops

RECGRELA_CPU_OP(GatedRela)
