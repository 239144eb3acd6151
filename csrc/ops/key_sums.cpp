// The operator key_sums: the kv_state of each whole sequence, which is all that a query needs to attend to it.
#include "cpu.h"
#include "cpu/key_sums.h"
#include "gated_rela.h"

namespace recgrela::ops {
namespace {

struct Operands {
  Tensor k, v, cu_seqlens;
  OptTensor rotary;
  int64_t num_heads;

  int64_t head_dim() const { return v.size(1) / num_heads; }
  Shape kv_state_shape() const { return {cu_seqlens.size(0) - 1, num_heads, head_dim() + 1, head_dim()}; }
};

Operands parse(Operands a) {
  const ScalarType type = a.v.scalar_type();
  check_operand(a.v, a.v, type, {-1, -1}, "v");
  check_operand(a.k, a.v, type, {a.v.size(0), a.v.size(1)}, "k");
  head_dim_of(a.v.size(1), a.num_heads);
  check_cu_seqlens(a.cu_seqlens, a.v);
  check_operand(a.rotary, a.v, type, {-1, a.v.size(1) / 2, 2}, "rotary");
  a.k = with_contiguous_rows(a.k), a.v = with_contiguous_rows(a.v);
  a.cu_seqlens = contiguous(a.cu_seqlens), a.rotary = contiguous(a.rotary);
  return a;
}

template <typename T>
cpu::GatedRelaParams<T> make_params(const Operands& a, const Sequences& sequences) {
  check_rotary_length(a.rotary, sequences.max_seqlen);
  cpu::GatedRelaParams<T> p;
  p.groups = cpu::Groups::of(sequences.count(), 0);
  p.max_seqlen = sequences.max_seqlen;
  p.num_heads = a.num_heads, p.head_dim = a.head_dim();
  p.set_heads_per_item(torch::stable::get_num_threads());
  p.cu_seqlens = sequences.offsets.data();
  p.k = rows<T>(a.k), p.v = rows<T>(a.v);
  p.rotary = data<T>(a.rotary);
  return p;
}

Tensor key_sums(const Tensor& k, const Tensor& v, const Tensor& cu_seqlens, const OptTensor& rotary,
                int64_t num_heads) {
  const Operands a = parse({k, v, cu_seqlens, rotary, num_heads});
  const Sequences sequences = read_sequences(a.cu_seqlens, a.v.size(0));
  const Tensor kv_state = make(a.v, a.kv_state_shape());
  dispatch_float(a.v.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    auto p = make_params<T>(a, sequences);
    p.final_kv_state = mutable_data<T>(kv_state);
    run_forward(cpu::key_sums_kernels<T>(), p, p.num_items(), a.v.numel());
  });
  return kv_state;
}

std::tuple<Tensor, Tensor> key_sums_backward(const Tensor& d_kv_state_, const Tensor& k, const Tensor& v,
                                             const Tensor& cu_seqlens, const OptTensor& rotary, int64_t num_heads) {
  const Operands a = parse({k, v, cu_seqlens, rotary, num_heads});
  const Sequences sequences = read_sequences(a.cu_seqlens, a.v.size(0));
  check_operand(d_kv_state_, a.v, a.v.scalar_type(), a.kv_state_shape(), "d_kv_state");
  const Tensor d_kv_state = contiguous(d_kv_state_), d_k = make_like(a.k), d_v = make_like(a.v);
  dispatch_float(a.v.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    auto p = make_params<T>(a, sequences);
    p.d_final_kv_state = data<T>(d_kv_state);
    p.d_k = mutable_rows<T>(d_k), p.d_v = mutable_rows<T>(d_v);
    run_backward(cpu::key_sums_kernels<T>(), p, p.num_items(), a.v.numel());
  });
  return {d_k, d_v};
}

}  // namespace
}  // namespace recgrela::ops

STABLE_TORCH_LIBRARY_FRAGMENT(recgrela, m) {
  m.def("key_sums(Tensor k, Tensor v, Tensor cu_seqlens, Tensor? rotary, int num_heads) -> Tensor kv_state");
  m.def(
      "key_sums_backward(Tensor d_kv_state, Tensor k, Tensor v, Tensor cu_seqlens, Tensor? rotary, int num_heads) -> "
      "(Tensor d_k, Tensor d_v)");
}

STABLE_TORCH_LIBRARY_IMPL(recgrela, CPU, m) {
  m.impl("key_sums", TORCH_BOX(&recgrela::ops::key_sums));
  m.impl("key_sums_backward", TORCH_BOX(&recgrela::ops::key_sums_backward));
}
