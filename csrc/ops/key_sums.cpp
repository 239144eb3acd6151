// The operator key_sums, and its implementation for the CPU.
#include "common.h"

namespace recgrela::ops {
namespace {

struct KeySums {
  Tensor k, v;
  Sequences sequences;
  OptTensor rotary;
  int64_t num_heads, head_dim;

  KeySums(const Tensor& k_, const Tensor& v_, const Tensor& cu_seqlens, const OptTensor& rotary_, int64_t num_heads)
      : k(with_contiguous_rows(k_)), v(with_contiguous_rows(v_)), rotary(contiguous(rotary_)), num_heads(num_heads) {
    check_rows(v, v, "v");
    check_rows(k, v, "k");
    const int64_t width = v.size(1);
    STD_TORCH_CHECK(num_heads > 0 && width % num_heads == 0 && width / num_heads % 2 == 0,
                    "num_heads must divide the width into heads of an even width");
    head_dim = width / num_heads;
    check_cu_seqlens(cu_seqlens, v);
    sequences = read_sequences(cu_seqlens, v.size(0));
    check_operand(rotary, v, v.scalar_type(), {-1, width / 2, 2}, "rotary");
    STD_TORCH_CHECK(!rotary || rotary->size(0) >= sequences.max_seqlen, "the rotary table has ",
                    rotary ? rotary->size(0) : 0, " positions, the longest sequence ", sequences.max_seqlen);
  }

  std::vector<int64_t> sums_shape() const { return {sequences.count(), num_heads, head_dim + 1, head_dim}; }

  template <typename T>
  cpu::GatedRelaParams<T> params() const {
    cpu::GatedRelaParams<T> p;
    p.groups = cpu::Groups::of(sequences.count(), 0);
    p.max_seqlen = sequences.max_seqlen;
    p.num_heads = num_heads, p.head_dim = head_dim;
    p.heads_per_item = p.groups.count >= 4 * int64_t(torch::stable::get_num_threads()) ? num_heads : 1;
    p.cu_seqlens = sequences.offsets.data();
    p.k = rows<T>(k), p.v = rows<T>(v);
    p.rotary = data<T>(rotary);
    return p;
  }
};

Tensor key_sums(const Tensor& k, const Tensor& v, const Tensor& cu_seqlens, const OptTensor& rotary,
                int64_t num_heads) {
  const KeySums a(k, v, cu_seqlens, rotary, num_heads);
  const Tensor sums = torch::stable::new_empty(v, a.sums_shape());
  dispatch_float(v.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    auto p = a.params<T>();
    p.final_sums = static_cast<T*>(sums.mutable_data_ptr());
    run<T>(cpu::kernels<T>().key_sums, p, false, p.num_items(), v.numel());
  });
  return sums;
}

std::tuple<Tensor, Tensor> key_sums_backward(const Tensor& d_sums_, const Tensor& k, const Tensor& v,
                                             const Tensor& cu_seqlens, const OptTensor& rotary, int64_t num_heads) {
  const KeySums a(k, v, cu_seqlens, rotary, num_heads);
  const Tensor d_sums = torch::stable::contiguous(d_sums_);
  const std::vector<int64_t> shape = a.sums_shape();
  STD_TORCH_CHECK(d_sums.is_cpu() && d_sums.scalar_type() == v.scalar_type() && d_sums.dim() == 4 &&
                      std::equal(shape.begin(), shape.end(), d_sums.sizes().begin()),
                  "the sums' gradient must have the sums' shape, dtype and device");
  const Tensor dk = torch::stable::new_empty(v, {v.size(0), v.size(1)});
  const Tensor dv = torch::stable::new_empty(v, {v.size(0), v.size(1)});
  dispatch_float(v.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    auto p = a.params<T>();
    p.final_sums_grad = static_cast<const T*>(d_sums.const_data_ptr());
    p.dk = mutable_rows<T>(dk), p.dv = mutable_rows<T>(dv);
    run<T>(cpu::kernels<T>().key_sums, p, true, p.num_items(), v.numel());
  });
  return {dk, dv};
}

}  // namespace
}  // namespace recgrela::ops

STABLE_TORCH_LIBRARY_FRAGMENT(recgrela, m) {
  m.def("key_sums(Tensor k, Tensor v, Tensor cu_seqlens, Tensor? rotary, int num_heads) -> Tensor");
  m.def(
      "key_sums_backward(Tensor d_sums, Tensor k, Tensor v, Tensor cu_seqlens, Tensor? rotary, int num_heads) -> "
      "(Tensor dk, Tensor dv)");
}

STABLE_TORCH_LIBRARY_IMPL(recgrela, CPU, m) {
  m.impl("key_sums", TORCH_BOX(&recgrela::ops::key_sums));
  m.impl("key_sums_backward", TORCH_BOX(&recgrela::ops::key_sums_backward));
}
