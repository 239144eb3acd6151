// The operators: the only file that knows both torch and the kernels. Checks what memory safety needs,
// allocates, shares the work out to torch's threads and registers. Through libtorch's stable ABI, so one
// built library serves every torch >= 2.10. Shapes and errors for people are in recgrela/ops.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <new>
#include <optional>
#include <tuple>
#include <vector>

#include "cpu/params.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptTensor = std::optional<Tensor>;
namespace cpu = recgrela::cpu;

template <typename F>
auto dispatch_float(ScalarType type, F&& f) {
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double,
                  "the CPU kernels take float32 and float64, not ", torch::headeronly::toString(type));
  return type == ScalarType::Float ? f(float{}) : f(double{});
}

// A matrix of rows whose last dimension is contiguous: as it is, or else a copy of it.
Tensor with_contiguous_rows(const Tensor& x) {
  return x.dim() == 2 && x.size(1) > 1 && x.stride(1) != 1 ? torch::stable::contiguous(x) : x;
}

void check_rows(const Tensor& x, const Tensor& like, const char* name) {
  STD_TORCH_CHECK(x.is_cpu() && x.scalar_type() == like.scalar_type() && x.dim() == 2 && x.size(0) == like.size(0) &&
                      x.size(1) == like.size(1),
                  name, " must have the shape, dtype and device of the first operand");
}

template <typename T>
cpu::Rows<const T> rows(const Tensor& x) {
  return {static_cast<const T*>(x.const_data_ptr()), x.stride(0)};
}
template <typename T>
cpu::Rows<T> mutable_rows(const Tensor& x) {
  return {static_cast<T*>(x.mutable_data_ptr()), x.stride(0)};
}
// k, where the rows hold q and k side by side.
template <typename T>
cpu::Rows<T> second_half(const cpu::Rows<T>& qk, int64_t d) {
  return {qk.data + d, qk.stride};
}
template <typename T>
const T* data(const OptTensor& x) {
  return x ? static_cast<const T*>(x->const_data_ptr()) : nullptr;
}

OptTensor contiguous(const OptTensor& x) { return x ? OptTensor(torch::stable::contiguous(*x)) : x; }

struct Sequences {
  std::vector<int64_t> offsets;
  int64_t max_seqlen = 0;
  int64_t count() const { return static_cast<int64_t>(offsets.size()) - 1; }
};

Sequences read_sequences(const Tensor& cu_seqlens, int64_t num_rows) {
  const ScalarType type = cu_seqlens.scalar_type();
  STD_TORCH_CHECK(cu_seqlens.is_cpu() && cu_seqlens.dim() == 1 && cu_seqlens.size(0) >= 1 &&
                      (type == ScalarType::Int || type == ScalarType::Long),
                  "cu_seqlens must be a 1-D int32 or int64 tensor on the operands' device, [B + 1]");
  const Tensor c = torch::stable::contiguous(cu_seqlens);
  Sequences s;
  s.offsets.resize(c.size(0));
  if (type == ScalarType::Int) {
    std::copy_n(static_cast<const int32_t*>(c.const_data_ptr()), s.offsets.size(), s.offsets.begin());
  } else {
    std::copy_n(static_cast<const int64_t*>(c.const_data_ptr()), s.offsets.size(), s.offsets.begin());
  }
  STD_TORCH_CHECK(s.offsets.front() == 0 && s.offsets.back() == num_rows, "cu_seqlens must start at 0 and end at ",
                  num_rows, ", the number of rows; it goes from ", s.offsets.front(), " to ", s.offsets.back());
  for (size_t i = 1; i < s.offsets.size(); ++i) {
    STD_TORCH_CHECK(s.offsets[i] >= s.offsets[i - 1], "cu_seqlens must not decrease; it does at index ", i);
    s.max_seqlen = std::max(s.max_seqlen, s.offsets[i] - s.offsets[i - 1]);
  }
  return s;
}

// Runs as many workers of an op as there are threads and work for them.
template <typename T, typename Op, typename Params>
void run(const Op& op, Params& params, bool backward, int64_t num_elements) {
  constexpr int64_t kElementsPerWorker = 16384, kAlign = 64;
  std::atomic<int64_t> next{0};
  params.next = &next;
  const int64_t workers = std::min({static_cast<int64_t>(torch::stable::get_num_threads()), params.num_items(),
                                    num_elements / kElementsPerWorker + 1});
  const int64_t bytes = (op.scratch(params, backward) * sizeof(T) + 2 * kAlign - 1) / kAlign * kAlign;
  std::unique_ptr<char, decltype(&std::free)> scratch(
      static_cast<char*>(std::aligned_alloc(kAlign, std::max<int64_t>(workers, 1) * bytes)), &std::free);
  if (!scratch) throw std::bad_alloc();
  torch::stable::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      (backward ? op.backward : op.forward)(params, reinterpret_cast<T*>(scratch.get() + i * bytes));
  });
}

// The partial sums of the weights' gradients, [groups, n], added up in a fixed order.
template <typename T>
void add_groups(const std::vector<T>& partial, int64_t n, const Tensor& out) {
  std::vector<double> total(n);
  for (size_t row = 0; row < partial.size(); row += n)
    for (int64_t i = 0; i < n; ++i) total[i] += partial[row + i];
  std::copy(total.begin(), total.end(), static_cast<T*>(out.mutable_data_ptr()));
}

// ---- gated_rela

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
    run<T>(cpu::kernels<T>().gated_rela, p, false, v.numel());
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
    run<T>(cpu::kernels<T>().gated_rela, p, true, v.numel());
    if (width) {
      add_groups(dw_partial, d * width, dw);
      add_groups(db_partial, d, db);
    }
  });
  return {dq, dk, dv, dg, dw, db};
}

// ---- causal_conv1d

struct ConvArgs {
  Tensor x, weight;
  OptTensor bias;
  Sequences sequences;

  ConvArgs(const Tensor& x_, const Tensor& weight_, const OptTensor& bias_, const Tensor& cu_seqlens)
      : x(with_contiguous_rows(x_)),
        weight(torch::stable::contiguous(weight_)),
        bias(contiguous(bias_)),
        sequences(read_sequences(cu_seqlens, x_.size(0))) {
    check_rows(x, x, "x");
    STD_TORCH_CHECK(weight.is_cpu() && weight.scalar_type() == x.scalar_type() && weight.dim() == 2 &&
                        weight.size(0) == x.size(1) && weight.size(1) > 0,
                    "weight must be [C, K], of the operand's dtype and device");
    STD_TORCH_CHECK(!bias || (bias->is_cpu() && bias->scalar_type() == x.scalar_type() && bias->dim() == 1 &&
                              bias->size(0) == x.size(1)),
                    "bias must be [C], of the operand's dtype and device");
  }

  template <typename T>
  cpu::CausalConv1dParams<T> params(bool silu) const {
    cpu::CausalConv1dParams<T> p;
    p.groups = cpu::Groups::of(sequences.count(), weight.numel());
    p.channels = x.size(1);
    p.width = weight.size(1);
    p.silu = silu;
    p.cu_seqlens = sequences.offsets.data();
    p.x = rows<T>(x);
    p.weight = static_cast<const T*>(weight.const_data_ptr());
    p.bias = data<T>(bias);
    return p;
  }
};

Tensor causal_conv1d(const Tensor& x, const Tensor& weight, const OptTensor& bias, const Tensor& cu_seqlens,
                     bool silu) {
  const ConvArgs args(x, weight, bias, cu_seqlens);
  const Tensor y = torch::stable::new_empty(x, {x.size(0), x.size(1)});
  dispatch_float(x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    auto p = args.params<T>(silu);
    p.y = mutable_rows<T>(y);
    run<T>(cpu::kernels<T>().causal_conv1d, p, false, x.numel());
  });
  return y;
}

std::tuple<Tensor, Tensor, Tensor> causal_conv1d_backward(const Tensor& dy_, const Tensor& x, const Tensor& weight,
                                                          const OptTensor& bias, const Tensor& cu_seqlens, bool silu) {
  const ConvArgs args(x, weight, bias, cu_seqlens);
  const Tensor dy = with_contiguous_rows(dy_);
  check_rows(dy, x, "dy");
  const int64_t c = x.size(1), width = weight.size(1);
  const Tensor dx = torch::stable::new_empty(x, {x.size(0), c});
  const Tensor dw = torch::stable::new_empty(x, {c, width});
  const Tensor db = torch::stable::new_empty(x, {bias ? c : 0});
  dispatch_float(x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    auto p = args.params<T>(silu);
    std::vector<T> dw_partial(p.groups.count * c * width), db_partial(bias ? p.groups.count * c : 0);
    p.dy = rows<T>(dy);
    p.dx = mutable_rows<T>(dx);
    p.dweight = dw_partial.data(), p.dbias = bias ? db_partial.data() : nullptr;
    run<T>(cpu::kernels<T>().causal_conv1d, p, true, x.numel());
    add_groups(dw_partial, c * width, dw);
    if (bias) add_groups(db_partial, c, db);
  });
  return {dx, dw, db};
}

}  // namespace

STABLE_TORCH_LIBRARY(recgrela, m) {
  m.def(
      "gated_rela(Tensor q, Tensor? k, Tensor v, Tensor? g, Tensor cu_seqlens, Tensor? rotary, Tensor? conv_weight, "
      "Tensor? conv_bias, int num_heads, bool causal, float eps) -> Tensor");
  m.def(
      "gated_rela_backward(Tensor dy, Tensor q, Tensor? k, Tensor v, Tensor? g, Tensor cu_seqlens, Tensor? rotary, "
      "Tensor? conv_weight, Tensor? conv_bias, int num_heads, bool causal, float eps) -> "
      "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def("causal_conv1d(Tensor x, Tensor weight, Tensor? bias, Tensor cu_seqlens, bool silu) -> Tensor");
  m.def(
      "causal_conv1d_backward(Tensor dy, Tensor x, Tensor weight, Tensor? bias, Tensor cu_seqlens, bool silu) -> "
      "(Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(recgrela, CPU, m) {
  m.impl("gated_rela", TORCH_BOX(&gated_rela));
  m.impl("gated_rela_backward", TORCH_BOX(&gated_rela_backward));
  m.impl("causal_conv1d", TORCH_BOX(&causal_conv1d));
  m.impl("causal_conv1d_backward", TORCH_BOX(&causal_conv1d_backward));
}
