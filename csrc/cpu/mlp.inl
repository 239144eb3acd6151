// mlp: y = drop(a W2^T + b2), a = drop(act(h)), h = x W1^T + b1, by blocks of rows whose h and a, several times as
// wide as x, never leave the cache. The backward makes h again:
//   dz = drop(dy), da = dz W2, dh = act'(h) drop(da), dx = dh W1, dW2 = dz^T a, dW1 = dh^T x
// and the gradients of the biases are the sums of dz and dh.

template <typename T>
struct MlpBlock {
  static constexpr int N = RECGRELA_VECTOR_BYTES / sizeof(T), kWidth = kTileVectors * N;
  static constexpr int64_t kRows = MlpParams<T>::kRowBlock;
  using Params = MlpParams<T>;

  const Params& p;
  T* arena;
  T *up, *down;        // W1^T and W2^T in panels; in the backward W1^T and W2
  T* back;             // W1 in panels; backward only
  Rows<T> h, dh;       // [kRows, hidden]; dh backward only
  Rows<T> dz, padded;  // [kRows, out] and [kRows, in], backward only

  static int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }
  static int64_t panel_elements(int64_t columns, int64_t depth) { return round_up(columns, kWidth) * depth; }
  // Whole vectors, and not a power of two: the rows of a column would share a few lines of the cache.
  static int64_t stride_of(int64_t columns) { return round_up(columns, kWidth) + kWidth; }

  static int64_t scratch(const Params& p, bool backward) {
    const int64_t i = p.in_features, f = p.hidden_features, o = p.out_features;
    const int64_t forward_elements = panel_elements(f, i) + kRows * stride_of(f);
    if (!backward) return forward_elements + panel_elements(o, f);
    return forward_elements + panel_elements(f, o) + panel_elements(i, f) +
           kRows * (stride_of(f) + stride_of(o) + stride_of(i));
  }

  MlpBlock(const Params& p, T* scratch, bool backward) : p(p), arena(scratch) {
    const int64_t i = p.in_features, f = p.hidden_features, o = p.out_features;
    auto rows = [&](int64_t columns) {
      return Rows<T>{std::exchange(arena, arena + kRows * stride_of(columns)), stride_of(columns)};
    };
    h = rows(f);
    up = pack_transposed(p.w1, f, i);
    if (!backward) {
      down = pack_transposed(p.w2, o, f);
      return;
    }
    down = pack(p.w2, f, o);
    back = pack(p.w1, i, f);
    dh = rows(f), dz = rows(o), padded = rows(i);
  }

  // Columns of the right operand of a product, [panels][depth][kWidth]: those of w, or w's rows.
  T* pack(const Rows<const T>& w, int64_t columns, int64_t depth) {
    T* const panels = std::exchange(arena, arena + panel_elements(columns, depth));
    T* out = panels;
    for (int64_t j = 0; j < columns; j += kWidth)
      for (int64_t k = 0; k < depth; ++k, out += kWidth) {
        const int64_t n = std::min<int64_t>(kWidth, columns - j);
        std::copy_n(w.row(k) + j, n, out);
        std::fill(out + n, out + kWidth, T(0));
      }
    return panels;
  }
  T* pack_transposed(const Rows<const T>& w, int64_t columns, int64_t depth) {
    T* const panels = std::exchange(arena, arena + panel_elements(columns, depth));
    for (int64_t j = 0; j < round_up(columns, kWidth); ++j)
      for (int64_t k = 0; k < depth; ++k)
        panels[j / kWidth * kWidth * depth + k * kWidth + j % kWidth] = j < columns ? w.row(j)[k] : T(0);
    return panels;
  }

  // n rows of out = a (what is in the panels) + bias
  static void product(int64_t n, const Rows<const T>& a, int64_t depth, const T* panels, const T* bias,
                      const Rows<T>& out, int64_t columns) {
    for (int64_t j = 0; j < columns; j += kWidth) {
      const int64_t width = std::min<int64_t>(kWidth, columns - j);
      T start[kWidth]{};
      if (bias) std::copy_n(bias + j, width, start);
      for_row_tiles(n, [&](int64_t row, auto rows) {
        multiply_tile<T, N, decltype(rows)::value, kTileVectors>(depth, a.row(row), a.stride, Stride<1>{},
                                                                 panels + j * depth, kWidth, {start, 0},
                                                                 {out.row(row) + j, out.stride}, width);
      });
    }
  }

  // dw [columns of a, width of b] += a^T b over n rows; b's rows are readable up to a whole vector
  static void add_product(int64_t n, const Rows<const T>& a, int64_t a_columns, const Rows<const T>& b, int64_t width,
                          T* dw) {
    for_column_tiles<N>(round_up(width, N), [&](int64_t j, auto vectors) {
      for_row_tiles(a_columns, [&](int64_t column, auto count) {
        const Rows<T> out{dw + column * width + j, width};
        multiply_tile<T, N, decltype(count)::value, decltype(vectors)::value>(
            n, a.data + column, Stride<1>{}, a.stride, b.data + j, b.stride, {out.data, out.stride}, out, width - j);
      });
    });
  }

  static void add_sums(int64_t n, const Rows<const T>& rows, int64_t columns, T* sums) {
    for (int64_t i = 0; i < n; ++i) {
      const T* const row = rows.row(i);
      for (int64_t j = 0; j < columns; ++j) sums[j] += row[j];
    }
  }

  static Rows<const T> in(const Rows<T>& rows) { return {rows.data, rows.stride}; }

  template <Activation kActivation>
  void forward(int64_t item) const {
    const int64_t row = item * kRows, n = std::min(kRows, p.num_rows - row);
    const int64_t f = p.hidden_features, o = p.out_features;
    product(n, {p.x.row(row), p.x.stride}, p.in_features, up, p.b1, h, f);
    for (int64_t i = 0; i < n; ++i) activate_and_drop<T, kActivation>(p.dropout1, (row + i) * f, f, h.row(i), h.row(i));
    const Rows<T> y{p.y.row(row), p.y.stride};
    product(n, in(h), f, down, p.b2, y, o);
    for (int64_t i = 0; i < n; ++i)
      activate_and_drop<T, Activation::kNone>(p.dropout2, (row + i) * o, o, y.row(i), y.row(i));
  }

  template <Activation kActivation>
  void backward(int64_t group) const {
    const int64_t k = p.in_features, f = p.hidden_features, o = p.out_features;
    const int64_t begin = group * p.rows_per_group, end = std::min(begin + p.rows_per_group, p.num_rows);
    T *const dw1 = p.gradients + group * p.num_weights(), *const dw2 = dw1 + f * k;
    T *const db1 = dw2 + o * f, *const db2 = db1 + f;
    std::fill(dw1, dw1 + p.num_weights(), T(0));
    for (int64_t row = begin; row < end; row += kRows) {
      const int64_t n = std::min(kRows, end - row);
      for (int64_t i = 0; i < n; ++i) {
        activate_and_drop<T, Activation::kNone>(p.dropout2, (row + i) * o, o, p.dy.row(row + i), dz.row(i));
        std::copy_n(p.x.row(row + i), k, padded.row(i));
        std::fill(padded.row(i) + k, padded.row(i) + round_up(k, N), T(0));
      }
      product(n, in(padded), k, up, p.b1, h, f);
      product(n, in(dz), o, down, nullptr, dh, f);
      for (int64_t i = 0; i < n; ++i)
        activate_and_drop_backward<T, kActivation>(p.dropout1, (row + i) * f, f, h.row(i), dh.row(i));
      product(n, in(dh), f, back, nullptr, {p.dx.row(row), p.dx.stride}, k);
      add_product(n, in(dh), f, in(padded), k, dw1);
      add_product(n, in(dz), o, in(h), f, dw2);
      add_sums(n, in(dh), f, db1);
      add_sums(n, in(dz), o, db2);
    }
  }
};

template <typename T, bool kBackward>
static void mlp_worker(const MlpParams<T>& p, T* scratch) {
  MlpBlock<T> work(p, scratch, kBackward);
  auto run = [&](auto activation) {
    constexpr Activation kActivation = decltype(activation)::value;
    for (int64_t item; (item = p.next->fetch_add(1)) < p.num_items(kBackward);) {
      if constexpr (kBackward) {
        work.template backward<kActivation>(item);
      } else {
        work.template forward<kActivation>(item);
      }
    }
  };
  switch (p.activation) {
    case Activation::kRelu:
      return run(std::integral_constant<Activation, Activation::kRelu>{});
    case Activation::kSilu:
      return run(std::integral_constant<Activation, Activation::kSilu>{});
    case Activation::kGelu:
      return run(std::integral_constant<Activation, Activation::kGelu>{});
    case Activation::kNone:
      return run(std::integral_constant<Activation, Activation::kNone>{});
  }
}
