// embedding on the CPU.
#include "embedding.h"

#include "cpu/embedding.h"
#include "dropout.h"

namespace recgrela::ops {
namespace {

template <typename T>
cpu::EmbeddingParams<T> make_params(const Embedding::Operands& a) {
  constexpr int64_t kChunkRows = 256, kMaxChunks = 1024;  // of which each has sums of its own
  cpu::EmbeddingParams<T> p;
  p.num_rows = a.num_rows(), p.width = a.width();
  p.chunk_rows = std::max(kChunkRows, cpu::ceil_div(p.num_rows, kMaxChunks));
  p.padding_idx = a.padding_idx, p.eps = static_cast<T>(a.eps);
  p.dropout = make_dropout<T>(a.dropout, a.seed, 0, 1, a.table, p.num_rows * p.width);
  p.items = data<int64_t>(a.items), p.table = data<T>(a.table);
  p.weight = data<T>(a.weight), p.bias = data<T>(a.bias);
  for (int64_t i = 0; i < p.num_rows; ++i)
    RECGRELA_CHECK(p.items[i] >= 0 && p.items[i] < a.n_items(), "items[", i, "] is ", p.items[i],
                   ", out of range for a table of ", a.n_items(), " rows");
  return p;
}

// The rows sorted by item, equal items in the order of their rows.
struct SortedRows {
  std::vector<int64_t> order, items;

  SortedRows(const int64_t* items_of_rows, int64_t num_rows, int64_t n_items) : order(num_rows), items(num_rows) {
    std::vector<int64_t> next(n_items + 1);
    for (int64_t i = 0; i < num_rows; ++i) ++next[items_of_rows[i] + 1];
    for (int64_t item = 0; item < n_items; ++item) {
      std::fill_n(items.begin() + next[item], next[item + 1], item);
      next[item + 1] += next[item];
    }
    for (int64_t i = 0; i < num_rows; ++i) order[next[items_of_rows[i]]++] = i;
  }
};

struct Cpu {
  static void forward(const Embedding::Operands& a, const Tensor& y) {
    dispatch_float(a.table.scalar_type(), [&](auto zero) {
      using T = decltype(zero);
      auto p = make_params<T>(a);
      p.y = mutable_data<T>(y);
      run_forward(cpu::embedding_kernels<T>(), p, p.num_chunks(), y.numel());
    });
  }

  static void backward(const Embedding::Operands& a, const Embedding::Gradients& grads) {
    dispatch_float(a.table.scalar_type(), [&](auto zero) {
      using T = decltype(zero);
      auto p = make_params<T>(a);
      const SortedRows sorted(p.items, p.num_rows, a.n_items());
      p.order = sorted.order.data(), p.sorted_items = sorted.items.data();
      p.d_y = rows<T>(grads.d_y), p.d_table = mutable_data<T>(grads.d_table);
      torch::stable::parallel_for(0, a.n_items(), 4096, [&](int64_t begin, int64_t end) {
        std::fill(p.d_table + begin * p.width, p.d_table + end * p.width, T(0));
      });
      const int64_t chunks = p.num_chunks();
      std::vector<T> first_sums(chunks * p.width);
      PartialSums<T> d_weight(chunks, grads.d_weight), d_bias(chunks, grads.d_bias);
      p.first_sums = first_sums.data(), p.d_weight = d_weight.data(), p.d_bias = d_bias.data();
      run_backward(cpu::embedding_kernels<T>(), p, chunks, p.num_rows * p.width);
      for (int64_t chunk = 1; chunk < chunks; ++chunk) {
        const int64_t first = chunk * p.chunk_rows, item = p.sorted_items[first];
        if (!p.continues(first) || item == p.padding_idx) continue;
        for (int64_t j = 0; j < p.width; ++j) p.d_table[item * p.width + j] += first_sums[chunk * p.width + j];
      }
      d_weight.add_up(), d_bias.add_up();
    });
  }
};

}  // namespace
}  // namespace recgrela::ops

RECGRELA_CPU_OP(Embedding)
