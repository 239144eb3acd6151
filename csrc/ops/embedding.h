// The operator embedding: its signature, operands and results on every backend.
#pragma once

#include "common.h"

namespace recgrela::ops {

struct Embedding {
  static constexpr char kName[] = "embedding";
  static constexpr const char* kSchemas[] = {
      "embedding(Tensor items, Tensor table, Tensor? weight, Tensor? bias, Tensor? seed, float eps, float dropout, "
      "int padding_idx) -> Tensor",
      "embedding_backward(Tensor d_y, Tensor items, Tensor table, Tensor? weight, Tensor? bias, Tensor? seed, "
      "float eps, float dropout, int padding_idx) -> (Tensor d_table, Tensor d_weight, Tensor d_bias)"};

  struct Operands {
    Tensor items, table;
    OptTensor weight, bias, seed;
    double eps, dropout;
    int64_t padding_idx;  // -1: none

    int64_t num_rows() const { return items.size(0); }
    int64_t n_items() const { return table.size(0); }
    int64_t width() const { return table.size(1); }
  };

  static Operands parse(Operands a) {
    const ScalarType type = a.table.scalar_type();
    check_operand(a.table, a.table, type, {-1, -1}, "table");
    RECGRELA_CHECK(a.n_items() > 0 && a.width() > 0, "table [n_items, D] must not be empty");
    check_operand(a.items, a.table, ScalarType::Long, {-1}, "items");
    check_operand(a.weight, a.table, type, {a.width()}, "weight");
    check_operand(a.bias, a.table, type, {a.width()}, "bias");
    RECGRELA_CHECK(a.weight || !a.bias, "bias needs weight");
    RECGRELA_CHECK(a.padding_idx >= -1 && a.padding_idx < a.n_items(), "padding_idx must be a row of the table or -1");
    a.items = contiguous(a.items), a.table = contiguous(a.table);
    a.weight = contiguous(a.weight), a.bias = contiguous(a.bias);
    return a;
  }

  struct Gradients {
    Tensor d_y, d_table, d_weight, d_bias;
  };

  template <typename Backend>
  static Tensor forward(const Tensor& items, const Tensor& table, const OptTensor& weight, const OptTensor& bias,
                        const OptTensor& seed, double eps, double dropout, int64_t padding_idx) {
    const Operands a = parse({items, table, weight, bias, seed, eps, dropout, padding_idx});
    const Tensor y = make(a.table, {a.num_rows(), a.width()});
    Backend::forward(a, y);
    return y;
  }

  template <typename Backend>
  static std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& d_y, const Tensor& items, const Tensor& table,
                                                     const OptTensor& weight, const OptTensor& bias,
                                                     const OptTensor& seed, double eps, double dropout,
                                                     int64_t padding_idx) {
    const Operands a = parse({items, table, weight, bias, seed, eps, dropout, padding_idx});
    check_operand(d_y, a.table, a.table.scalar_type(), {a.num_rows(), a.width()}, "d_y");
    const Gradients grads{with_contiguous_rows(d_y), make_like(a.table), make_gradient(a.weight, a.table),
                          make_gradient(a.bias, a.table)};
    Backend::backward(a, grads);
    return {grads.d_table, grads.d_weight, grads.d_bias};
  }
};

}  // namespace recgrela::ops
