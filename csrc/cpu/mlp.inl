// mlp: y = drop(a W2^T + b2), a = drop(act(h)), h = x W1^T + b1, in blocks of rows whose h and a, several times as wide
// as x, stay in cache. The backward recomputes h:
//   d_z = drop(d_y), d_a = d_z W2, d_h = act'(h) drop(d_a), d_x = d_h W1, d_W2 = d_z^T a, d_W1 = d_h^T x
// The gradients of the biases are the sums of d_z and d_h.

#include "activation.inl"
#include "few_rows.inl"

template <typename T>
struct MlpBlock {
  static constexpr int N = RECGRELA_VECTOR_BYTES / sizeof(T), kWidth = kTileVectors * N;
  static constexpr int64_t kRows = MlpParams<T>::kBlockRows;
  using Params = MlpParams<T>;

  const Params& p;
  T* arena;
  T *up, *down;                // W1^T and W2^T in panels, not for few rows; in the backward W1^T and W2
  T* back;                     // W1 in panels; backward only
  RowMatrix<T> h, d_h;         // [kRows, hidden]; d_h backward only
  RowMatrix<T> d_z, padded_x;  // [kRows, out] and [kRows, in]; backward only

  static int64_t panel_elements(int64_t columns, int64_t depth) { return round_up(columns, kWidth) * depth; }
  // A multiple of the vector length. A panel is added because the elements of a column share few cache sets if the
  // stride is a power of two.
  static int64_t stride_of(int64_t columns) { return round_up(columns, kWidth) + kWidth; }

  // Packing the weights takes longer than multiplying them by so few rows.
  static constexpr int64_t kFewRows = 4;
  static bool packs(const Params& p, bool backward) { return backward || p.num_rows > kFewRows; }

  static int64_t scratch(const Params& p, bool backward) {
    const int64_t i = p.in_features, f = p.hidden_features, o = p.out_features;
    if (!packs(p, backward)) return kRows * stride_of(f);
    const int64_t forward_elements = panel_elements(f, i) + kRows * stride_of(f);
    if (!backward) return forward_elements + panel_elements(o, f);
    return forward_elements + panel_elements(f, o) + panel_elements(i, f) +
           kRows * (stride_of(f) + stride_of(o) + stride_of(i));
  }

  MlpBlock(const Params& p, T* scratch, bool backward) : p(p), arena(scratch) {
    const int64_t i = p.in_features, f = p.hidden_features, o = p.out_features;
    auto rows = [&](int64_t columns) {
      return RowMatrix<T>{std::exchange(arena, arena + kRows * stride_of(columns)), stride_of(columns)};
    };
    h = rows(f);
    if (!packs(p, backward)) return;
    up = pack_transposed(p.w1, f, i);
    if (!backward) {
      down = pack_transposed(p.w2, o, f);
      return;
    }
    down = pack(p.w2, f, o);
    back = pack(p.w1, i, f);
    d_h = rows(f), d_z = rows(o), padded_x = rows(i);
  }

  // Packs w [depth, columns], a product's right operand, into panels [panels][depth][kWidth].
  T* pack(const RowMatrix<const T>& w, int64_t columns, int64_t depth) {
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
  // The same for the transpose of w [columns, depth].
  T* pack_transposed(const RowMatrix<const T>& w, int64_t columns, int64_t depth) {
    T* const panels = std::exchange(arena, arena + panel_elements(columns, depth));
    for (int64_t j = 0; j < round_up(columns, kWidth); ++j)
      for (int64_t k = 0; k < depth; ++k)
        panels[j / kWidth * kWidth * depth + k * kWidth + j % kWidth] = j < columns ? w.row(j)[k] : T(0);
    return panels;
  }

  // Computes n rows of out = a panels + bias.
  static void product(int64_t n, const RowMatrix<const T>& a, int64_t depth, const T* panels, const T* bias,
                      const RowMatrix<T>& out, int64_t columns) {
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

  // Adds a^T b over n rows to d_w [a_columns, width]. b's rows are readable up to a multiple of the vector length.
  static void add_product(int64_t n, const RowMatrix<const T>& a, int64_t a_columns, const RowMatrix<const T>& b,
                          int64_t width, T* d_w) {
    for_column_tiles<N>(round_up(width, N), [&](int64_t j, auto vectors) {
      for_row_tiles(a_columns, [&](int64_t column, auto count) {
        const RowMatrix<T> out{d_w + column * width + j, width};
        multiply_tile<T, N, decltype(count)::value, decltype(vectors)::value>(
            n, a.data + column, Stride<1>{}, a.stride, b.data + j, b.stride, {out.data, out.stride}, out, width - j);
      });
    });
  }

  static void add_sums(int64_t n, const RowMatrix<const T>& rows, int64_t columns, T* sums) {
    for (int64_t i = 0; i < n; ++i) {
      const T* const row = rows.row(i);
      for (int64_t j = 0; j < columns; ++j) sums[j] += row[j];
    }
  }

  static RowMatrix<const T> in(const RowMatrix<T>& rows) { return {rows.data, rows.stride}; }

  template <Activation kActivation>
  void forward(int64_t item) const {
    const int64_t row = item * kRows, n = std::min(kRows, p.num_rows - row);
    const int64_t f = p.hidden_features, o = p.out_features;
    const RowMatrix<const T> x{p.x.row(row), p.x.stride};
    const bool few = !packs(p, false);
    few ? multiply_few(n, x, p.in_features, p.w1, p.b1, h, f) : product(n, x, p.in_features, up, p.b1, h, f);
    for (int64_t i = 0; i < n; ++i)
      activate_and_drop<T, kActivation>(p.dropout1, (row + i) * p.hidden_stride(), f, h.row(i), h.row(i));
    const RowMatrix<T> y{p.y.row(row), p.y.stride};
    few ? multiply_few(n, in(h), f, p.w2, p.b2, y, o) : product(n, in(h), f, down, p.b2, y, o);
    for (int64_t i = 0; i < n; ++i)
      activate_and_drop<T, Activation::kNone>(p.dropout2, (row + i) * o, o, y.row(i), y.row(i));
  }

  template <Activation kActivation>
  void backward(int64_t group) const {
    const int64_t k = p.in_features, f = p.hidden_features, o = p.out_features;
    const int64_t begin = group * p.rows_per_group, end = std::min(begin + p.rows_per_group, p.num_rows);
    T *const d_w1 = p.gradients + group * p.num_weights(), *const d_w2 = d_w1 + f * k;
    T *const d_b1 = d_w2 + o * f, *const d_b2 = d_b1 + f;
    std::fill(d_w1, d_w1 + p.num_weights(), T(0));
    for (int64_t row = begin; row < end; row += kRows) {
      const int64_t n = std::min(kRows, end - row);
      for (int64_t i = 0; i < n; ++i) {
        activate_and_drop<T, Activation::kNone>(p.dropout2, (row + i) * o, o, p.d_y.row(row + i), d_z.row(i));
        std::copy_n(p.x.row(row + i), k, padded_x.row(i));
        std::fill(padded_x.row(i) + k, padded_x.row(i) + round_up(k, N), T(0));
      }
      product(n, in(padded_x), k, up, p.b1, h, f);
      product(n, in(d_z), o, down, nullptr, d_h, f);
      for (int64_t i = 0; i < n; ++i)
        activate_and_drop_backward<T, kActivation>(p.dropout1, (row + i) * p.hidden_stride(), f, h.row(i), d_h.row(i));
      product(n, in(d_h), f, back, nullptr, {p.d_x.row(row), p.d_x.stride}, k);
      add_product(n, in(d_h), f, in(padded_x), k, d_w1);
      add_product(n, in(d_z), o, in(h), f, d_w2);
      add_sums(n, in(d_h), f, d_b1);
      add_sums(n, in(d_z), o, d_b2);
    }
  }
};

template <typename T, bool kBackward>
static void mlp_worker(const MlpParams<T>& p, T* scratch) {
  MlpBlock<T> work(p, scratch, kBackward);
  auto run = [&](auto activation) {
    constexpr Activation kActivation = decltype(activation)::value;
    for (int64_t item; p.queue->take(item);) {
      if constexpr (kBackward) {
        work.template backward<kActivation>(item);
      } else {
        work.template forward<kActivation>(item);
      }
    }
  };
  with_activation(p.activation, run);
}

template <typename T>
static constexpr MlpKernels<T> kKernels{MlpBlock<T>::scratch, mlp_worker<T, false>, mlp_worker<T, true>};
