// The operator gated_rela, and its implementation for the CPU.
#include "gated_rela.h"

namespace recgrela::ops {
namespace {

template <typename T>
cpu::GatedRelaParams<T> make_params(const RelaArgs& a, const Sequences& sequences) {
  STD_TORCH_CHECK(!a.rotary || a.rotary->size(0) >= sequences.max_seqlen, "the rotary table has ",
                  a.rotary ? a.rotary->size(0) : 0, " positions, the longest sequence ", sequences.max_seqlen);
  if (a.count) {
    const int64_t* const count = data<int64_t>(a.count);
    for (int64_t i = 0; i < a.batch(); ++i) {
      STD_TORCH_CHECK(count[i] >= 0, "the initial position must not be negative; it is at index ", i);
      const int64_t length = sequences.offsets[i + 1] - sequences.offsets[i];
      const int64_t positions = a.rotary ? a.rotary->size(0) : INT64_MAX;
      STD_TORCH_CHECK(length <= positions - count[i], "the rotary table has ", positions, " positions, sequence ", i,
                      " has ", length, " rows from its initial position ", count[i], " on");
    }
  }
  cpu::GatedRelaParams<T> p;
  p.groups = cpu::Groups::of(sequences.count(), a.width() * a.conv_width());
  p.max_seqlen = sequences.max_seqlen;
  p.num_heads = a.num_heads;
  const int64_t threads = torch::stable::get_num_threads();
  p.heads_per_item = p.groups.count >= 4 * threads ? a.num_heads : 1;
  p.head_dim = a.head_dim();
  p.conv_width = a.conv_width();
  p.causal = a.causal;
  p.eps = static_cast<T>(a.eps);
  p.cu_seqlens = sequences.offsets.data();
  p.q = rows<T>(a.q), p.k = a.k ? rows<T>(*a.k) : second_half(p.q, a.width()), p.v = rows<T>(a.v);
  if (a.g) p.g = rows<T>(*a.g);
  p.rotary = data<T>(a.rotary), p.conv_weight = data<T>(a.conv_weight), p.conv_bias = data<T>(a.conv_bias);
  p.initial_sums = data<T>(a.sums), p.initial_values = data<T>(a.values), p.initial_count = data<int64_t>(a.count);
  return p;
}

RelaResult gated_rela(const Tensor& q, const OptTensor& k, const Tensor& v, const OptTensor& g,
                      const Tensor& cu_seqlens, const OptTensor& rotary, const OptTensor& conv_weight,
                      const OptTensor& conv_bias, const OptTensor& sums, const OptTensor& values,
                      const OptTensor& count, int64_t num_heads, bool causal, double eps, bool return_state) {
  const RelaArgs args(q, k, v, g, cu_seqlens, rotary, conv_weight, conv_bias, sums, values, count, num_heads, causal,
                      eps);
  const RelaOutputs out(args, return_state);
  const Sequences sequences = read_sequences(args.cu_seqlens, v.size(0));
  dispatch_float(v.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    auto p = make_params<T>(args, sequences);
    p.y = mutable_rows<T>(out.y);
    if (return_state) {
      p.final_sums = mutable_data<T>(out.sums), p.final_values = mutable_data<T>(out.values);
      p.final_count = mutable_data<int64_t>(out.count);
    }
    run<T>(cpu::kernels<T>().gated_rela, p, false, p.num_items(), v.numel());
  });
  return {out.y, out.sums, out.values, out.count};
}

RelaGradientResult gated_rela_backward(const Tensor& dy, const OptTensor& d_sums, const OptTensor& d_values,
                                       const Tensor& q, const OptTensor& k, const Tensor& v, const OptTensor& g,
                                       const Tensor& cu_seqlens, const OptTensor& rotary, const OptTensor& conv_weight,
                                       const OptTensor& conv_bias, const OptTensor& sums, const OptTensor& values,
                                       const OptTensor& count, int64_t num_heads, bool causal, double eps) {
  const RelaArgs args(q, k, v, g, cu_seqlens, rotary, conv_weight, conv_bias, sums, values, count, num_heads, causal,
                      eps);
  const RelaGradients grads(args, dy, d_sums, d_values);
  const Sequences sequences = read_sequences(args.cu_seqlens, v.size(0));
  const int64_t d = args.width(), width = args.conv_width();
  dispatch_float(v.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    auto p = make_params<T>(args, sequences);
    std::vector<T> dw_partial(p.groups.count * d * width), db_partial(width ? p.groups.count * d : 0);
    p.dy = rows<T>(grads.dy);
    p.dq = mutable_rows<T>(grads.dq), p.dv = mutable_rows<T>(grads.dv);
    p.dk = args.k ? mutable_rows<T>(grads.dk) : second_half(p.dq, d);
    if (args.g) p.dg = mutable_rows<T>(grads.dg);
    p.dweight = dw_partial.data(), p.dbias = db_partial.data();
    p.final_sums_grad = data<T>(grads.d_sums), p.final_values_grad = data<T>(grads.d_values);
    if (args.sums) {
      p.initial_sums_grad = mutable_data<T>(grads.d_initial_sums);
      p.initial_values_grad = mutable_data<T>(grads.d_initial_values);
    }
    run<T>(cpu::kernels<T>().gated_rela, p, true, p.num_items(), v.numel());
    if (width) {
      add_groups(dw_partial, d * width, grads.dw);
      add_groups(db_partial, d, grads.db);
    }
  });
  return grads.result();
}

}  // namespace
}  // namespace recgrela::ops

STABLE_TORCH_LIBRARY_FRAGMENT(recgrela, m) {
  for (const char* schema : recgrela::ops::kRelaSchemas) m.def(schema);
}

STABLE_TORCH_LIBRARY_IMPL(recgrela, CPU, m) {
  m.impl("gated_rela", TORCH_BOX(&recgrela::ops::gated_rela));
  m.impl("gated_rela_backward", TORCH_BOX(&recgrela::ops::gated_rela_backward));
}
