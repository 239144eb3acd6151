// gated_rela_last on the CPU.
#include "gated_rela_last.h"

#include "cpu.h"
#include "cpu/gated_rela_last.h"

namespace recgrela::ops {
namespace {

// Checks that each wanted row is in its sequence, unless the sequence is empty.
void check_rows(const GatedRelaLast::Operands& a, const Sequences& sequences) {
  const int64_t* const rows = data<int64_t>(a.rows);
  for (int64_t b = 0; b < a.batch(); ++b) {
    const int64_t begin = sequences.offsets[b], end = sequences.offsets[b + 1];
    RECGRELA_CHECK(begin == end || (rows[b] >= begin && rows[b] < end), "rows[", b, "] is ", rows[b], ", but sequence ",
                   b, " has the rows ", begin, " to ", end - 1);
  }
}

template <typename T>
cpu::GatedRelaLastParams<T> make_params(const GatedRelaLast::Operands& a, const Sequences& sequences) {
  check_rotary_length(a.rotary, sequences.max_seqlen);
  check_rows(a, sequences);
  cpu::GatedRelaLastParams<T> p;
  p.groups = cpu::Groups::of(sequences.count(), a.width() * a.kernel_size());
  p.num_heads = a.num_heads, p.head_dim = a.head_dim(), p.kernel_size = a.kernel_size();
  p.set_heads_per_item(torch::stable::get_num_threads());
  p.eps = static_cast<T>(a.eps);
  p.cu_seqlens = sequences.offsets.data(), p.wanted = data<int64_t>(a.rows);
  p.q = rows<T>(a.q), p.k = rows<T>(a.k), p.v = rows<T>(a.v), p.g = rows<T>(a.g);
  p.rotary = data<T>(a.rotary), p.conv_weight = data<T>(a.conv_weight), p.conv_bias = data<T>(a.conv_bias);
  return p;
}

struct Cpu {
  static void forward(const GatedRelaLast::Operands& a, const GatedRelaLast::Outputs& out) {
    const Sequences sequences = read_sequences(a.cu_seqlens, a.num_rows());
    dispatch_float(a.v.scalar_type(), [&](auto zero) {
      using T = decltype(zero);
      auto p = make_params<T>(a, sequences);
      p.y = mutable_rows<T>(out.y), p.sums = mutable_data<T>(out.sums);
      run_forward(cpu::gated_rela_last_kernels<T>(), p, p.num_items(), a.v.numel());
    });
  }

  static void backward(const GatedRelaLast::Operands& a, const GatedRelaLast::Gradients& grads) {
    const Sequences sequences = read_sequences(a.cu_seqlens, a.num_rows());
    dispatch_float(a.v.scalar_type(), [&](auto zero) {
      using T = decltype(zero);
      auto p = make_params<T>(a, sequences);
      PartialSums<T> d_conv_weight(p.groups.count, grads.d_conv_weight);
      PartialSums<T> d_conv_bias(p.groups.count, grads.d_conv_bias);
      p.sums = mutable_data<T>(grads.sums);
      p.d_y = rows<T>(grads.d_y), p.d_q = mutable_rows<T>(grads.d_q), p.d_g = mutable_rows<T>(grads.d_g);
      p.d_k = mutable_rows<T>(grads.d_k), p.d_v = mutable_rows<T>(grads.d_v);
      p.d_conv_weight = d_conv_weight.data(), p.d_conv_bias = d_conv_bias.data();
      run_backward(cpu::gated_rela_last_kernels<T>(), p, p.num_items(), a.v.numel());
      d_conv_weight.add_up(), d_conv_bias.add_up();
    });
  }
};

}  // namespace
}  // namespace recgrela::ops

RECGRELA_CPU_OP(GatedRelaLast)
