// The operator gated_rela_last: its signature, operands and results on every backend.
#pragma once

#include "common.h"
#include "gated_rela.h"

namespace recgrela::ops {

struct GatedRelaLast {
  static constexpr char kName[] = "gated_rela_last";
  static constexpr const char* kSchemas[] = {
      "gated_rela_last(Tensor q, Tensor k, Tensor v, Tensor? g, Tensor cu_seqlens, Tensor rows, Tensor? rotary, "
      "Tensor? conv_weight, Tensor? conv_bias, int num_heads, float eps) -> (Tensor y, Tensor sums)",
      "gated_rela_last_backward(Tensor d_y, Tensor sums, Tensor q, Tensor k, Tensor v, Tensor? g, Tensor cu_seqlens, "
      "Tensor rows, Tensor? rotary, Tensor? conv_weight, Tensor? conv_bias, int num_heads, float eps) -> (Tensor d_q, "
      "Tensor d_k, Tensor d_v, Tensor d_g, Tensor d_conv_weight, Tensor d_conv_bias)"};

  struct Operands {
    Tensor q, k, v;
    OptTensor g;
    Tensor cu_seqlens, rows;
    OptTensor rotary, conv_weight, conv_bias;
    int64_t num_heads;
    double eps;

    int64_t num_rows() const { return v.size(0); }
    int64_t width() const { return v.size(1); }
    int64_t head_dim() const { return width() / num_heads; }
    int64_t batch() const { return cu_seqlens.size(0) - 1; }
    int64_t kernel_size() const { return conv_weight ? conv_weight->size(1) : 0; }
    // Sums over the rows of a sequence, which the forward saves: of weights times v, and of phi(k).
    Shape sums_shape() const { return {batch(), 2, width()}; }
  };

  static Operands parse(Operands a) {
    const ScalarType type = a.v.scalar_type();
    check_operand(a.v, a.v, type, {-1, -1}, "v");
    check_cu_seqlens(a.cu_seqlens, a.v);
    const int64_t t = a.num_rows(), d = a.width(), b = a.batch();
    check_operand(a.q, a.v, type, {b, d}, "q");
    check_operand(a.k, a.v, type, {t, d}, "k");
    check_operand(a.g, a.v, type, {b, d}, "g");
    check_operand(a.rows, a.v, ScalarType::Long, {b}, "rows");
    check_heads(a);
    a.q = with_contiguous_rows(a.q), a.k = with_contiguous_rows(a.k);
    a.v = with_contiguous_rows(a.v), a.g = with_contiguous_rows(a.g);
    a.cu_seqlens = contiguous(a.cu_seqlens), a.rows = contiguous(a.rows), a.rotary = contiguous(a.rotary);
    a.conv_weight = contiguous(a.conv_weight), a.conv_bias = contiguous(a.conv_bias);
    return a;
  }

  struct Outputs {
    Tensor y, sums;
  };

  struct Gradients {
    Tensor d_y, sums;
    Tensor d_q, d_k, d_v, d_g, d_conv_weight, d_conv_bias;
  };

  template <typename Backend>
  static std::tuple<Tensor, Tensor> forward(const Tensor& q, const Tensor& k, const Tensor& v, const OptTensor& g,
                                            const Tensor& cu_seqlens, const Tensor& rows, const OptTensor& rotary,
                                            const OptTensor& conv_weight, const OptTensor& conv_bias, int64_t num_heads,
                                            double eps) {
    const Operands a = parse({q, k, v, g, cu_seqlens, rows, rotary, conv_weight, conv_bias, num_heads, eps});
    const Outputs out{make_like(a.q), make(a.v, a.sums_shape(), state_type(a.v))};
    Backend::forward(a, out);
    return {out.y, out.sums};
  }

  template <typename Backend>
  static std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> backward(
      const Tensor& d_y, const Tensor& sums, const Tensor& q, const Tensor& k, const Tensor& v, const OptTensor& g,
      const Tensor& cu_seqlens, const Tensor& rows, const OptTensor& rotary, const OptTensor& conv_weight,
      const OptTensor& conv_bias, int64_t num_heads, double eps) {
    const Operands a = parse({q, k, v, g, cu_seqlens, rows, rotary, conv_weight, conv_bias, num_heads, eps});
    check_operand(d_y, a.v, a.v.scalar_type(), {a.batch(), a.width()}, "d_y");
    check_operand(sums, a.v, state_type(a.v), a.sums_shape(), "sums");
    const Gradients grads{with_contiguous_rows(d_y),
                          contiguous(sums),
                          make_like(a.q),
                          make_like(a.k),
                          make_like(a.v),
                          make_gradient(a.g, a.v),
                          make_gradient(a.conv_weight, a.v),
                          make_gradient(a.conv_bias, a.v)};
    Backend::backward(a, grads);
    return {grads.d_q, grads.d_k, grads.d_v, grads.d_g, grads.d_conv_weight, grads.d_conv_bias};
  }
};

}  // namespace recgrela::ops
