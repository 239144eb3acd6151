// The operator gated_rela.
#include "common.h"

namespace recgrela::ops {
namespace {

struct RelaArgs {
  Tensor q, v;  // q holds q and k side by side when there is no k
  OptTensor k, g, rotary, conv_weight, conv_bias;
  Sequences sequences;

  RelaArgs(const Tensor& q_, const OptTensor& k_, const Tensor& v_, const OptTensor& g_, const Tensor& cu_seqlens,
           const OptTensor& rotary_, const OptTensor& conv_weight_, const OptTensor& conv_bias_, int64_t num_heads)
      : q(with_contiguous_rows(q_)),
        v(with_contiguous_rows(v_)),
        k(k_ ? OptTensor(with_contiguous_rows(*k_)) : k_),
        g(g_ ? OptTensor(with_contiguous_rows(*g_)) : g_),
        rotary(contiguous(rotary_)),
        conv_weight(contiguous(conv_weight_)),
        conv_bias(contiguous(conv_bias_)),
        sequences(read_sequences(cu_seqlens, q_.size(0))) {
    const int64_t d = v.size(1);
    check_rows(v, v, "v");
    if (k) check_rows(*k, v, "k");
    if (g) check_rows(*g, v, "g");
    STD_TORCH_CHECK(q.is_cpu() && q.scalar_type() == v.scalar_type() && q.dim() == 2 && q.size(0) == v.size(0) &&
                        q.size(1) == (k ? d : 2 * d),
                    "q must have the rows, dtype and device of v, and its width (twice that without k)");
    STD_TORCH_CHECK(num_heads > 0 && d % num_heads == 0 && d / num_heads % 2 == 0,
                    "num_heads must divide the width into heads of an even width");
    auto parameter = [&](const OptTensor& x, bool shape_ok, const char* what) {
      STD_TORCH_CHECK(!x || (x->is_cpu() && x->scalar_type() == v.scalar_type() && shape_ok), what);
    };
    parameter(rotary, rotary && rotary->dim() == 3 && rotary->size(1) == d / 2 && rotary->size(2) == 2,
              "rotary must be [positions, D / 2, 2], of the operands' dtype and device");
    STD_TORCH_CHECK(!rotary || rotary->size(0) >= sequences.max_seqlen, "the rotary table has ",
                    rotary ? rotary->size(0) : 0, " positions, the longest sequence ", sequences.max_seqlen);
    STD_TORCH_CHECK(conv_weight.has_value() == conv_bias.has_value(), "conv_weight and conv_bias go together");
    parameter(conv_weight,
              conv_weight && conv_weight->dim() == 2 && conv_weight->size(0) == d && conv_weight->size(1) > 0,
              "conv_weight must be [D, K], of the operands' dtype and device");
    parameter(conv_bias, conv_bias && conv_bias->dim() == 1 && conv_bias->size(0) == d,
              "conv_bias must be [D], of the operands' dtype and device");
  }

  template <typename T>
  cpu::GatedRelaParams<T> params(int64_t num_heads, bool causal, double eps) const {
    cpu::GatedRelaParams<T> p;
    p.groups = cpu::Groups::of(sequences.count(), conv_weight ? conv_weight->numel() : 0);
    p.max_seqlen = sequences.max_seqlen;
    p.num_heads = num_heads;
    const int64_t threads = torch::stable::get_num_threads();
    p.heads_per_item = p.groups.count >= 4 * threads ? num_heads : 1;
    p.head_dim = v.size(1) / num_heads;
    p.conv_width = conv_weight ? conv_weight->size(1) : 0;
    p.causal = causal;
    p.eps = static_cast<T>(eps);
    p.cu_seqlens = sequences.offsets.data();
    p.q = rows<T>(q), p.k = k ? rows<T>(*k) : second_half(p.q, v.size(1)), p.v = rows<T>(v);
    if (g) p.g = rows<T>(*g);
    p.rotary = data<T>(rotary), p.conv_weight = data<T>(conv_weight), p.conv_bias = data<T>(conv_bias);
    return p;
  }
};

Tensor gated_rela(const Tensor& q, const OptTensor& k, const Tensor& v, const OptTensor& g, const Tensor& cu_seqlens,
                  const OptTensor& rotary, const OptTensor& conv_weight, const OptTensor& conv_bias, int64_t num_heads,
                  bool causal, double eps) {
  const RelaArgs args(q, k, v, g, cu_seqlens, rotary, conv_weight, conv_bias, num_heads);
  const Tensor y = torch::stable::new_empty(v, {v.size(0), v.size(1)});
  dispatch_float(v.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    auto p = args.params<T>(num_heads, causal, eps);
    p.y = mutable_rows<T>(y);
    run<T>(cpu::kernels<T>().gated_rela, p, false, p.num_items(), v.numel());
  });
  return y;
}

// Absent operands get an empty gradient.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> gated_rela_backward(
    const Tensor& dy_, const Tensor& q, const OptTensor& k, const Tensor& v, const OptTensor& g,
    const Tensor& cu_seqlens, const OptTensor& rotary, const OptTensor& conv_weight, const OptTensor& conv_bias,
    int64_t num_heads, bool causal, double eps) {
  const RelaArgs args(q, k, v, g, cu_seqlens, rotary, conv_weight, conv_bias, num_heads);
  const Tensor dy = with_contiguous_rows(dy_);
  check_rows(dy, v, "dy");
  const int64_t t = v.size(0), d = v.size(1), width = conv_weight ? conv_weight->size(1) : 0;
  auto empty = [&](bool present, int64_t columns) {
    return present ? torch::stable::new_empty(v, {t, columns}) : torch::stable::new_empty(v, {0});
  };
  const Tensor dq = empty(true, q.size(1)), dk = empty(k.has_value(), d), dv = empty(true, d);
  const Tensor dg = empty(g.has_value(), d);
  const Tensor dw = conv_weight ? torch::stable::new_empty(v, {d, width}) : empty(false, 0);
  const Tensor db = torch::stable::new_empty(v, {conv_weight ? d : 0});
  dispatch_float(v.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    auto p = args.params<T>(num_heads, causal, eps);
    std::vector<T> dw_partial(p.groups.count * d * width), db_partial(width ? p.groups.count * d : 0);
    p.dy = rows<T>(dy);
    p.dq = mutable_rows<T>(dq), p.dv = mutable_rows<T>(dv);
    p.dk = k ? mutable_rows<T>(dk) : second_half(p.dq, d);
    if (g) p.dg = mutable_rows<T>(dg);
    p.dweight = dw_partial.data(), p.dbias = db_partial.data();
    run<T>(cpu::kernels<T>().gated_rela, p, true, p.num_items(), v.numel());
    if (width) {
      add_groups(dw_partial, d * width, dw);
      add_groups(db_partial, d, db);
    }
  });
  return {dq, dk, dv, dg, dw, db};
}

}  // namespace
}  // namespace recgrela::ops

STABLE_TORCH_LIBRARY_FRAGMENT(recgrela, m) {
  m.def(
      "gated_rela(Tensor q, Tensor? k, Tensor v, Tensor? g, Tensor cu_seqlens, Tensor? rotary, Tensor? conv_weight, "
      "Tensor? conv_bias, int num_heads, bool causal, float eps) -> Tensor");
  m.def(
      "gated_rela_backward(Tensor dy, Tensor q, Tensor? k, Tensor v, Tensor? g, Tensor cu_seqlens, Tensor? rotary, "
      "Tensor? conv_weight, Tensor? conv_bias, int num_heads, bool causal, float eps) -> "
      "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(recgrela, CPU, m) {
  m.impl("gated_rela", TORCH_BOX(&recgrela::ops::gated_rela));
  m.impl("gated_rela_backward", TORCH_BOX(&recgrela::ops::gated_rela_backward));
}
