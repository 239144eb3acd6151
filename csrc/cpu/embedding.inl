// embedding: rows of a table with dropout and LayerNorm, in one pass; the backward adds the rows of each item in the
// order of the rows, and makes dropout and LayerNorm again. A row stays in registers if it is K whole vectors, and in
// the cache otherwise (K = 0).

#include "activation.inl"

template <typename T, int N, int K>
class EmbeddingWorker {
  using V = Vec<T, N>;
  using RowDrop = Drop<T, N, K != 0 && K * N % kDrawBlock == 0>;
  // The vectors of a row: an array of its own, or one of the scratch memory's.
  struct Row {
    V own[K > 0 ? K : 1];
    V* const shared;
    __attribute__((always_inline)) V& operator[](int64_t k) { return K > 0 ? own[k] : shared[k]; }
  };

 public:
  static constexpr int64_t kScratchRows = 5;

  EmbeddingWorker(const EmbeddingParams<T>& p, T* scratch)
      : p_(p), scratch_(reinterpret_cast<V*>(scratch)), inverse_width_(T(1) / static_cast<T>(p.width)) {}

  void forward() {
    for (int64_t chunk; p_.queue->take(chunk);) {
      const int64_t begin = chunk * p_.chunk_rows, end = std::min(begin + p_.chunk_rows, p_.num_rows);
      for (int64_t row = begin; row < end; ++row) {
        Row x = make_row(0), factors = make_row(1);
        look_up(row, p_.items[row], x, factors);
        const T factor = p_.weight ? normalize(x) : T(1);
        T* const y = p_.y + row * p_.width;
        for (int64_t k = 0; k < vectors(); ++k) {
          V out = x[k];
          if (p_.weight) out *= factor * load<T, N>(p_.weight + k * N);
          if (p_.bias) out += load<T, N>(p_.bias + k * N);
          store<T, N>(y + k * N, out);
        }
      }
    }
  }

  void backward() {
    for (int64_t chunk; p_.queue->take(chunk);) {
      const int64_t begin = chunk * p_.chunk_rows, end = std::min(begin + p_.chunk_rows, p_.num_rows);
      Row d_weight = make_row(2), d_bias = make_row(3), total = make_row(4);
      clear(d_weight), clear(d_bias), clear(total);
      for (int64_t first = begin, i = begin; i < end; ++i) {
        const int64_t item = p_.sorted_items[i];
        const bool is_padding = item == p_.padding_idx;
        if (i + kAhead < end)  // the rows are in no order that the processor foresees
          for (int64_t j = 0; j < p_.width; j += kLine) __builtin_prefetch(p_.d_y.row(p_.order[i + kAhead]) + j);
        if (p_.weight || !is_padding) add_row(p_.order[i], item, total, d_weight, d_bias);
        if (i + 1 < end && p_.sorted_items[i + 1] == item) continue;
        if (!is_padding) {
          const bool in_table = first > begin || !p_.continues(first);
          put(total, in_table ? p_.d_table + item * p_.width : p_.first_sums + chunk * p_.width);
        }
        clear(total);
        first = i + 1;
      }
      if (p_.d_weight) put(d_weight, p_.d_weight + chunk * p_.width);
      if (p_.d_bias) put(d_bias, p_.d_bias + chunk * p_.width);
    }
  }

 private:
  static constexpr int64_t kAhead = 4, kLine = 64 / sizeof(T);

  int64_t vectors() const { return K > 0 ? K : p_.width / N; }
  Row make_row(int64_t i) const { return Row{{}, K > 0 ? nullptr : scratch_ + i * vectors()}; }
  void clear(Row& row) const {
    for (int64_t k = 0; k < vectors(); ++k) row[k] = V{};
  }
  void put(Row& row, T* to) const {
    for (int64_t k = 0; k < vectors(); ++k) store<T, N>(to + k * N, row[k]);
  }

  // Loads row `row` of y before the LayerNorm, and the factors of its dropout.
  __attribute__((always_inline)) void look_up(int64_t row, int64_t item, Row& x, Row& factors) const {
    const T* const from = p_.table + item * p_.width;
    if constexpr (K == 0) {  // vectors of N elements may be short: the factors are made in full vectors
      T* const elements = reinterpret_cast<T*>(&factors[0]);
      std::fill_n(elements, p_.width, T(1));
      activate_and_drop<T, Activation::kNone>(p_.dropout, row * p_.width, p_.width, elements, elements);
      for (int64_t k = 0; k < vectors(); ++k) x[k] = factors[k] == V{} ? V{} : load<T, N>(from + k * N) * factors[k];
      return;
    }
    for (int64_t k = 0; k < vectors(); ++k) {
      const RowDrop drop(p_.dropout, row * p_.width, k * N);
      factors[k] = drop(splat<T, N>(T(1)));
      x[k] = drop(load<T, N>(from + k * N));
    }
  }

  // Subtracts the mean of the row and returns 1 / sqrt(variance + eps).
  __attribute__((always_inline)) T normalize(Row& x) const {
    V total{}, squares{};
    for (int64_t k = 0; k < vectors(); ++k) total += x[k];
    const T mean = sum<T, N>(total) * inverse_width_;
    for (int64_t k = 0; k < vectors(); ++k) x[k] -= mean, squares += x[k] * x[k];
    return T(1) / std::sqrt(sum<T, N>(squares) * inverse_width_ + p_.eps);
  }

  // Adds the gradient of a row of the table to total, and those of the parameters to d_weight and d_bias.
  __attribute__((always_inline)) void add_row(int64_t row, int64_t item, Row& total, Row& d_weight, Row& d_bias) const {
    const T* const d_y = p_.d_y.row(row);
    Row x = make_row(0), factors = make_row(1);
    look_up(row, item, x, factors);
    if (!p_.weight) {
      for (int64_t k = 0; k < vectors(); ++k) total[k] += load<T, N>(d_y + k * N) * factors[k];
      return;
    }
    const T factor = normalize(x);
    V sums{}, products{};
    for (int64_t k = 0; k < vectors(); ++k) {
      const V d = load<T, N>(d_y + k * N), d_normed = d * load<T, N>(p_.weight + k * N);
      x[k] *= factor;
      d_weight[k] += d * x[k], d_bias[k] += d;
      sums += d_normed, products += d_normed * x[k];
    }
    const T mean = sum<T, N>(sums) * inverse_width_, slope = sum<T, N>(products) * inverse_width_;
    for (int64_t k = 0; k < vectors(); ++k) {
      const V d_normed = load<T, N>(d_y + k * N) * load<T, N>(p_.weight + k * N);
      total[k] += (d_normed - mean - x[k] * slope) * factor * factors[k];
    }
  }

  const EmbeddingParams<T>& p_;
  V* const scratch_;
  const T inverse_width_;
};

// Calls f with the worker for the width of the rows.
template <typename T, typename F>
static void with_embedding_worker(const EmbeddingParams<T>& p, T* scratch, F&& f) {
  constexpr int N = RECGRELA_VECTOR_BYTES / sizeof(T);
  switch (p.width % N == 0 ? p.width / N : 0) {
    case 2:
      return f(EmbeddingWorker<T, N, 2>(p, scratch));
    case 4:
      return f(EmbeddingWorker<T, N, 4>(p, scratch));
    case 8:
      return f(EmbeddingWorker<T, N, 8>(p, scratch));
    default:
      with_lanes<T>(p.width, [&](auto lanes) { f(EmbeddingWorker<T, decltype(lanes)::value, 0>(p, scratch)); });
  }
}

template <typename T>
static void embedding_forward(const EmbeddingParams<T>& p, T* scratch) {
  with_embedding_worker(p, scratch, [](auto worker) { worker.forward(); });
}

template <typename T>
static void embedding_backward(const EmbeddingParams<T>& p, T* scratch) {
  with_embedding_worker(p, scratch, [](auto worker) { worker.backward(); });
}

template <typename T>
static int64_t embedding_scratch(const EmbeddingParams<T>& p, bool) {
  return EmbeddingWorker<T, 1, 0>::kScratchRows * p.width;
}

template <typename T>
static constexpr EmbeddingKernels<T> kKernels{embedding_scratch<T>, embedding_forward<T>, embedding_backward<T>};
