// embedding: rows of a table with dropout and LayerNorm, in one pass; the backward adds the rows of each item in the
// order of the rows, and makes dropout and LayerNorm again.

#include "activation.inl"

// Copies row `row` of y before the LayerNorm to x, and the factors of its dropout to `factors` unless that is null.
template <typename T, int N>
static void look_up(const EmbeddingParams<T>& p, int64_t row, int64_t item, T* x, T* factors) {
  const T* const from = p.table + item * p.width;
  for (int64_t j = 0; j < p.width; j += N) {
    const Drop<T, N> drop(p.dropout, row * p.width + j);
    store<T, N>(x + j, drop(load<T, N>(from + j)));
    if (factors) store<T, N>(factors + j, drop(splat<T, N>(T(1))));
  }
}

// Replaces x by (x - mean) / sqrt(variance + eps) and returns the factor.
template <typename T, int N>
static T normalize(T* x, int64_t width, T eps) {
  Vec<T, N> total{};
  for (int64_t j = 0; j < width; j += N) total += load<T, N>(x + j);
  const T mean = sum<T, N>(total) / static_cast<T>(width);
  total = Vec<T, N>{};
  for (int64_t j = 0; j < width; j += N) {
    const Vec<T, N> centered = load<T, N>(x + j) - mean;
    store<T, N>(x + j, centered);
    total += centered * centered;
  }
  const T factor = T(1) / std::sqrt(sum<T, N>(total) / static_cast<T>(width) + eps);
  for (int64_t j = 0; j < width; j += N) store<T, N>(x + j, load<T, N>(x + j) * factor);
  return factor;
}

template <typename T, int N>
static void embed_rows(const EmbeddingParams<T>& p, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    T* const y = p.y + row * p.width;
    look_up<T, N>(p, row, p.items[row], y, nullptr);
    if (!p.weight) continue;
    normalize<T, N>(y, p.width, p.eps);
    for (int64_t j = 0; j < p.width; j += N) {
      const Vec<T, N> scaled = load<T, N>(y + j) * load<T, N>(p.weight + j);
      store<T, N>(y + j, p.bias ? scaled + load<T, N>(p.bias + j) : scaled);
    }
  }
}

// Adds the gradient of a row of the table to total, and those of the parameters to d_weight and d_bias.
template <typename T, int N>
static void add_row(const EmbeddingParams<T>& p, int64_t row, int64_t item, T* x, T* factors, T* total, T* d_weight,
                    T* d_bias) {
  const T* const d_y = p.d_y.row(row);
  if (!p.weight) {
    for (int64_t j = 0; j < p.width; j += N) {
      const Drop<T, N> drop(p.dropout, row * p.width + j);
      store<T, N>(total + j, load<T, N>(total + j) + drop(load<T, N>(d_y + j)));
    }
    return;
  }
  look_up<T, N>(p, row, item, x, factors);
  const T factor = normalize<T, N>(x, p.width, p.eps);
  Vec<T, N> sums{}, products{};
  for (int64_t j = 0; j < p.width; j += N) {
    const Vec<T, N> normed = load<T, N>(x + j), d = load<T, N>(d_y + j), d_normed = d * load<T, N>(p.weight + j);
    sums += d_normed, products += d_normed * normed;
    store<T, N>(d_weight + j, load<T, N>(d_weight + j) + d * normed);
    if (d_bias) store<T, N>(d_bias + j, load<T, N>(d_bias + j) + d);
  }
  const T mean = sum<T, N>(sums) / static_cast<T>(p.width), slope = sum<T, N>(products) / static_cast<T>(p.width);
  for (int64_t j = 0; j < p.width; j += N) {
    const Vec<T, N> d_normed = load<T, N>(d_y + j) * load<T, N>(p.weight + j);
    const Vec<T, N> d_x = (d_normed - mean - load<T, N>(x + j) * slope) * factor;
    store<T, N>(total + j, load<T, N>(total + j) + d_x * load<T, N>(factors + j));
  }
}

template <typename T, int N>
static void add_chunk(const EmbeddingParams<T>& p, int64_t chunk, T* scratch) {
  T *const x = scratch, *const factors = x + p.width, *const total = factors + p.width;
  T* const d_weight = p.d_weight ? p.d_weight + chunk * p.width : nullptr;
  T* const d_bias = p.d_bias ? p.d_bias + chunk * p.width : nullptr;
  const int64_t begin = chunk * p.chunk_rows, end = std::min(begin + p.chunk_rows, p.num_rows);
  for (int64_t first = begin, next; first < end; first = next) {
    const int64_t item = p.sorted_items[first];
    for (next = first + 1; next < end && p.sorted_items[next] == item;) ++next;
    const bool is_padding = item == p.padding_idx;
    if (is_padding && !p.weight) continue;
    std::fill_n(total, p.width, T(0));
    for (int64_t i = first; i < next; ++i) {
      constexpr int64_t kAhead = 4, kLine = 64 / sizeof(T);
      if (i + kAhead < end)  // the rows are in no order that the processor foresees
        for (int64_t j = 0; j < p.width; j += kLine) __builtin_prefetch(p.d_y.row(p.order[i + kAhead]) + j);
      add_row<T, N>(p, p.order[i], item, x, factors, total, d_weight, d_bias);
    }
    const bool in_table = first > begin || !p.continues(first);
    if (!is_padding)
      std::copy_n(total, p.width, in_table ? p.d_table + item * p.width : p.first_sums + chunk * p.width);
  }
}

template <typename T>
static void embedding_forward(const EmbeddingParams<T>& p, T*) {
  with_lanes<T>(p.width, [&](auto lanes) {
    for (int64_t chunk; p.queue->take(chunk);) {
      const int64_t begin = chunk * p.chunk_rows;
      embed_rows<T, decltype(lanes)::value>(p, begin, std::min(begin + p.chunk_rows, p.num_rows));
    }
  });
}

template <typename T>
static void embedding_backward(const EmbeddingParams<T>& p, T* scratch) {
  with_lanes<T>(p.width, [&](auto lanes) {
    for (int64_t chunk; p.queue->take(chunk);) add_chunk<T, decltype(lanes)::value>(p, chunk, scratch);
  });
}

template <typename T>
static int64_t embedding_scratch(const EmbeddingParams<T>& p, bool backward) {
  return backward ? 3 * p.width : 0;
}

template <typename T>
static constexpr EmbeddingKernels<T> kKernels{embedding_scratch<T>, embedding_forward<T>, embedding_backward<T>};
