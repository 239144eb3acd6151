// linear_cross_entropy: one block of scores at a time (some rows by some items, all items if they fit), in phases whose
// items of work are independent of each other:
//   pack         the block's item rows, transposed in panels for the scores and padded for the gradients
//   score        s = x W^T + bias, and the maximum of each row and chunk
//   exponentiate e = exp(s - maximum), and its sum for each row and chunk
//   finish       sums of rows; e[target] -= (1 - a) sum, so that softmax - (1 - a) one-hot = e / sum; x scaled by
//                1 / (T sum). a is the label smoothing, whose other terms are the vectors that gradients begin as.
//   gradients    d_x = e W / (T sum), d_W = e^T (x scaled), d_bias = e^T (1 / (T sum))
// If a block does not hold all items, a first pass over the blocks computes the maximum and the sum of each row, and a
// second pass the gradients. The order of every sum is independent of the number of threads.
//
// Scores are stored in panels as wide as a tile: [panels][padded_rows][kWidth]. Columns after the last item contain
// -infinity; rows after the last one pad the last tile and are not used.

#include "gemm.inl"

template <typename T>
struct CrossEntropy {
  static constexpr int N = RECGRELA_VECTOR_BYTES / sizeof(T), kWidth = kTileVectors * N;
  static constexpr int64_t kRows = LinearCrossEntropyParams<T>::kBlockRows;
  static constexpr int64_t kDepth = 64, kDepthRows = 96;  // of a product whose operands stay in the L1 cache
  static_assert(kRows % kTileRows == 0);
  using V = Vec<T, N>;
  using Params = LinearCrossEntropyParams<T>;

  const Params& p;
  T* const scratch;
  const int64_t dim, row_blocks, chunks;

  CrossEntropy(const Params& p, T* scratch)
      : p(p), scratch(scratch), dim(p.padded_dim()), row_blocks(p.row_blocks()), chunks(p.chunks()) {}

  static int64_t scratch_elements(const Params& p) { return kRows * p.padded_dim(); }

  T* scores(int64_t panel, int64_t row) const { return p.scores + (panel * p.padded_rows() + row) * kWidth; }
  int64_t last_panel(int64_t chunk) const { return std::min((chunk + 1) * p.chunk_panels, p.panels()); }
  T* per_chunk(T* values, int64_t chunk, int64_t row) const { return values + chunk * p.padded_rows() + row; }
  int64_t rows_of(int64_t block) const { return std::min(kRows, p.num_rows - block * kRows); }
  // Rows of a block for which scores are computed: whole tiles.
  int64_t tile_rows_of(int64_t block) const { return round_up(rows_of(block), kTileRows); }

  void pack(int64_t chunk) const {
    for (int64_t panel = chunk * p.chunk_panels; panel < last_panel(chunk); ++panel) {
      T* const transposed = p.weight_panels + panel * kWidth * p.dim;
      for (int64_t i = 0; i < kWidth; ++i) {
        const int64_t item = panel * kWidth + i;
        T* const padded = p.weight_rows + item * dim;
        p.bias_panels[item] = p.bias && item < p.num_items ? p.bias[p.first_item + item] : T(0);
        const T* const w = item < p.num_items ? p.weight.row(p.first_item + item) : nullptr;
        for (int64_t k = 0; k < p.dim; ++k) transposed[k * kWidth + i] = w ? w[k] : T(0);
        if (!p.make_gradients) continue;
        for (int64_t k = 0; k < dim; ++k) padded[k] = w && k < p.dim ? w[k] : T(0);
      }
    }
  }

  void score(int64_t item) const {
    const int64_t block = item % row_blocks, chunk = item / row_blocks, row0 = block * kRows;
    const int64_t n = tile_rows_of(block), valid = rows_of(block);
    for (int64_t i = 0; i < n; i += kTileRows)  // x in tiles of rows, [tiles][dim][kTileRows]
      for (int r = 0; r < kTileRows; ++r) {
        const T* const x = i + r < valid ? p.hidden.row(p.first_row + row0 + i + r) : nullptr;
        for (int64_t k = 0; k < p.dim; ++k) scratch[i * p.dim + k * kTileRows + r] = x ? x[k] : T(0);
      }
    V max_score[kRows];
    std::fill(max_score, max_score + n, splat<T, N>(-std::numeric_limits<T>::infinity()));
    for (int64_t panel = chunk * p.chunk_panels; panel < last_panel(chunk); ++panel) {
      T* const out = scores(panel, row0);
      for (int64_t i = 0; i < n; i += kTileRows) {
        multiply_tile<T, N, kTileRows, kTileVectors>(p.dim, scratch + i * p.dim, Stride<1>{}, Stride<kTileRows>{},
                                                     p.weight_panels + panel * kWidth * p.dim, kWidth,
                                                     {p.bias_panels + panel * kWidth, 0}, {out + i * kWidth, kWidth});
      }
      if (const int64_t items = p.num_items - panel * kWidth; items < kWidth)
        for (int64_t i = 0; i < n; ++i)
          std::fill(out + i * kWidth + items, out + (i + 1) * kWidth, -std::numeric_limits<T>::infinity());
      if (!p.reduce) continue;
      for (int64_t i = 0; i < n; ++i)
        for (int c = 0; c < kTileVectors; ++c) {
          const V s = load<T, N>(out + i * kWidth + c * N);
          max_score[i] = s > max_score[i] ? s : max_score[i];
        }
    }
    if (!p.reduce) return;
    for (int64_t i = 0; i < n; ++i) {
      T maximum = max_score[i][0];
      for (int c = 1; c < N; ++c) maximum = std::max(maximum, T(max_score[i][c]));
      *per_chunk(p.chunk_max_score, chunk, row0 + i) = maximum;
    }
  }

  // The maximum score of a row over this block and the earlier ones.
  T max_score_of(int64_t row) const {
    T maximum = p.max_score[p.first_row + row];
    if (p.reduce)
      for (int64_t chunk = 0; chunk < chunks; ++chunk)
        maximum = std::max(maximum, *per_chunk(p.chunk_max_score, chunk, row));
    return maximum;
  }

  void exponentiate(int64_t item) const {
    const int64_t block = item % row_blocks, chunk = item / row_blocks, row0 = block * kRows;
    const int64_t n = rows_of(block), panel0 = chunk * p.chunk_panels;
    T max_score[kRows];
    V sums[kRows]{};
    for (int64_t i = 0; i < n; ++i) {
      max_score[i] = max_score_of(row0 + i);
      const int64_t t = p.target[p.first_row + row0 + i] - p.first_item - panel0 * kWidth;
      if (p.reduce && t >= 0 && t < (last_panel(chunk) - panel0) * kWidth)
        p.target_score[p.first_row + row0 + i] = scores(panel0 + t / kWidth, row0 + i)[t % kWidth];
    }
    for (int64_t panel = panel0; panel < last_panel(chunk); ++panel) {
      T* const s = scores(panel, row0);
      for (int64_t i = 0; i < n; ++i)
        for (int c = 0; c < kTileVectors; ++c) {
          const V e = exp<T, N, false>(load<T, N>(s + i * kWidth + c * N) - max_score[i]);
          sums[i] += e;
          store<T, N>(s + i * kWidth + c * N, e);
        }
    }
    for (int64_t i = 0; i < n; ++i) *per_chunk(p.chunk_sum, chunk, row0 + i) = sum<T, N>(sums[i]);
  }

  void finish(int64_t block) const {
    for (int64_t row = block * kRows; row < block * kRows + rows_of(block); ++row) {
      T &max_score = p.max_score[p.first_row + row], &total = p.sum[p.first_row + row];
      if (p.reduce) {
        const T maximum = max_score_of(row);
        total *= std::exp(max_score - maximum);
        for (int64_t chunk = 0; chunk < chunks; ++chunk) total += *per_chunk(p.chunk_sum, chunk, row);
        max_score = maximum;
      }
      if (!p.make_gradients) continue;
      const int64_t t = p.target[p.first_row + row] - p.first_item;
      if (t >= 0 && t < p.num_items) scores(t / kWidth, row)[t % kWidth] -= p.target_probability * total;
      const T factor = p.scale / total, *x = p.hidden.row(p.first_row + row);
      T* const scaled = p.scaled + row * dim;
      for (int64_t k = 0; k < dim; ++k) scaled[k] = k < p.dim ? x[k] * factor : T(0);
    }
  }

  // Items are blocks of rows, which take longer, and then chunks of panels.
  void gradients(int64_t item) const {
    const int64_t blocks = p.d_hidden.data ? row_blocks : 0;
    if (item < blocks) {
      hidden_gradient(item);
    } else {
      if (p.d_weight.data) weight_gradient(item - blocks);
      if (p.d_bias) bias_gradient(item - blocks);
    }
  }

  // out += e W, for kTileRows rows, the panels begin .. end and C vectors of columns from j on
  template <int C>
  __attribute__((noinline)) void hidden_tile(T* out, int64_t row, int64_t begin, int64_t end, int64_t j) const {
    V acc[kTileRows][C];
    load_tile<T, N>({out, dim}, acc);
    int64_t panel = begin;
    do {
      multiply<T, N>(kWidth, scores(panel, row), Stride<kWidth>{}, Stride<1>{},
                     p.weight_rows + panel * kWidth * dim + j, dim, acc);
    } while (++panel < end);
    store_tile<T, N>({out, dim}, acc);
  }

  void hidden_gradient(int64_t block) const {
    const int64_t row0 = block * kRows, n = tile_rows_of(block);
    constexpr int64_t kPanels = std::max<int64_t>(1, kDepth / kWidth);
    std::fill(scratch, scratch + n * dim, T(0));
    for (int64_t panel0 = 0; panel0 < p.panels(); panel0 += kPanels)
      for (int64_t i = 0; i < n; i += kTileRows)
        for_column_tiles<N>(dim, [&](int64_t j, auto vectors) {
          hidden_tile<decltype(vectors)::value>(scratch + i * dim + j, row0 + i, panel0,
                                                std::min(panel0 + kPanels, p.panels()), j);
        });
    for (int64_t i = 0; i < rows_of(block); ++i) {
      const int64_t row = p.first_row + row0 + i;
      const T factor = p.scale / p.sum[row];
      T* const d = p.d_hidden.row(row);
      for (int64_t k = 0; k < p.dim; ++k)
        d[k] = scratch[i * dim + k] * factor + (p.first_item == 0 ? p.d_hidden_start[k] : d[k]);
    }
  }

  void weight_gradient(int64_t chunk) const {
    for (int64_t row0 = 0; row0 < p.num_rows; row0 += kDepthRows)
      for (int64_t panel = chunk * p.chunk_panels; panel < last_panel(chunk); ++panel) {
        const int64_t depth = std::min(kDepthRows, p.num_rows - row0), item0 = panel * kWidth;
        const int64_t items = std::min<int64_t>(kWidth, p.num_items - item0);
        if (p.first_row + row0 == 0)
          for (int64_t i = 0; i < items; ++i)
            std::copy_n(p.d_weight_start, p.dim, p.d_weight.row(p.first_item + item0 + i));
        for_row_tiles(items, [&](int64_t item, auto rows) {
          for_column_tiles<N>(dim, [&](int64_t j, auto vectors) {
            const RowMatrix<T> out{p.d_weight.row(p.first_item + item0 + item) + j, p.d_weight.stride};
            multiply_tile<T, N, decltype(rows)::value, decltype(vectors)::value>(
                depth, scores(panel, row0) + item, Stride<1>{}, Stride<kWidth>{}, p.scaled + row0 * dim + j, dim,
                {out.data, out.stride}, out, p.dim - j);
          });
        });
      }
  }

  void bias_gradient(int64_t chunk) const {
    for (int64_t panel = chunk * p.chunk_panels; panel < last_panel(chunk); ++panel) {
      V sums[kTileVectors]{};
      for (int64_t i = 0; i < p.num_rows; ++i) {
        const T factor = p.scale / p.sum[p.first_row + i], *const e = scores(panel, i);
        for (int c = 0; c < kTileVectors; ++c) sums[c] += load<T, N>(e + c * N) * factor;
      }
      T column_sums[kWidth];
      for (int c = 0; c < kTileVectors; ++c) store<T, N>(column_sums + c * N, sums[c]);
      const int64_t item0 = panel * kWidth, items = std::min<int64_t>(kWidth, p.num_items - item0);
      T* const d = p.d_bias + p.first_item + item0;
      for (int64_t i = 0; i < items; ++i) d[i] = column_sums[i] + (p.first_row == 0 ? p.d_bias_start : d[i]);
    }
  }
};

template <typename T, void (CrossEntropy<T>::*kPhase)(int64_t) const>
static void cross_entropy_worker(const LinearCrossEntropyParams<T>& p, T* scratch) {
  const CrossEntropy<T> work(p, scratch);
  for (int64_t item; p.queue->take(item);) (work.*kPhase)(item);
}

template <typename T>
static constexpr LinearCrossEntropyKernels<T> kKernels{CrossEntropy<T>::N,
                                                       CrossEntropy<T>::kWidth,
                                                       CrossEntropy<T>::scratch_elements,
                                                       cross_entropy_worker<T, &CrossEntropy<T>::pack>,
                                                       cross_entropy_worker<T, &CrossEntropy<T>::score>,
                                                       cross_entropy_worker<T, &CrossEntropy<T>::exponentiate>,
                                                       cross_entropy_worker<T, &CrossEntropy<T>::finish>,
                                                       cross_entropy_worker<T, &CrossEntropy<T>::gradients>};
