// Matrix products by tiles of the result, which stay in registers.

// Rows and columns (in vectors) of a tile. Its sums, a row of b and an element of a fill the register file.
constexpr int kTileRows = RECGRELA_VECTOR_BYTES == 64 ? 12 : 6, kTileVectors = 2;

template <int64_t kStride>
using Stride = std::integral_constant<int64_t, kStride>;

// acc[r][c] += sum over k < n of a[r row + k step] b[k stride + c N .. + N], n > 0. Constant strides take no registers.
// The loop is a do-while since one that may run zero times would keep a second copy of the sums.
template <typename T, int N, int R, int C, typename Row, typename Step>
RECGRELA_INLINE void multiply(int64_t n, const T* a, Row row, Step step, const T* b, int64_t stride,
                              Vec<T, N> (&acc)[R][C]) {
  do {
    Vec<T, N> x[C];
    for (int c = 0; c < C; ++c) x[c] = load<T, N>(b + c * N);
    for (int r = 0; r < R; ++r)
      for (int c = 0; c < C; ++c) acc[r][c] += a[r * row] * x[c];
    a += step, b += stride;
  } while (--n > 0);
}

template <typename T, int N, int R, int C>
RECGRELA_INLINE void load_tile(RowMatrix<const T> from, Vec<T, N> (&acc)[R][C]) {
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < C; ++c) acc[r][c] = load<T, N>(from.row(r) + c * N);
}

template <typename T, int N, int R, int C>
RECGRELA_INLINE void store_tile(RowMatrix<T> to, const Vec<T, N> (&acc)[R][C]) {
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < C; ++c) store<T, N>(to.row(r) + c * N, acc[r][c]);
}

// out = start + a b. Not inlined, so that constants of the caller do not take the registers of sums.
template <typename T, int N, int R, int C, typename Row, typename Step>
__attribute__((noinline)) static void multiply_tile(int64_t n, const T* a, Row row, Step step, const T* b,
                                                    int64_t stride, RowMatrix<const T> start, RowMatrix<T> out) {
  Vec<T, N> acc[R][C];
  load_tile<T, N>(start, acc);
  multiply<T, N>(n, a, row, step, b, stride, acc);
  store_tile<T, N>(out, acc);
}

// The same for a tile of which only the first `columns` columns exist in start and out, which may be the same memory.
template <typename T, int N, int R, int C, typename Row, typename Step>
static inline void multiply_tile(int64_t n, const T* a, Row row, Step step, const T* b, int64_t stride,
                                 RowMatrix<const T> start, RowMatrix<T> out, int64_t columns) {
  if (columns >= C * N) return multiply_tile<T, N, R, C>(n, a, row, step, b, stride, start, out);
  T tile[R * C * N]{};
  for (int r = 0; r < R; ++r) std::copy_n(start.row(r), columns, tile + r * C * N);
  multiply_tile<T, N, R, C>(n, a, row, step, b, stride, {tile, C * N}, {tile, C * N});
  for (int r = 0; r < R; ++r) std::copy_n(tile + r * C * N, columns, out.row(r));
}

// Calls f(std::integral_constant<int, n>), 1 <= n <= R.
template <int R = kTileRows, typename F>
static inline void with_rows(int64_t n, F&& f) {
  if constexpr (R > 1) {
    if (n < R) return with_rows<R - 1>(n, static_cast<F&&>(f));
  }
  f(std::integral_constant<int, R>{});
}

// Divides n rows into tiles of almost equal height and calls f(first row, std::integral_constant<int, rows>).
template <typename F>
static inline void for_row_tiles(int64_t n, F&& f) {
  const int64_t tiles = ceil_div(n, kTileRows);
  for (int64_t tile = 0, row = 0; tile < tiles; ++tile) {
    const int64_t rows = ceil_div(n - row, tiles - tile);
    with_rows(rows, [&](auto count) { f(row, count); });
    row += rows;
  }
}

// Calls f(first column, std::integral_constant<int, vectors>) for tiles of n columns, a multiple of N.
template <int N, typename F>
static inline void for_column_tiles(int64_t n, F&& f) {
  int64_t j = 0;
  for (; j + kTileVectors * N <= n; j += kTileVectors * N) f(j, std::integral_constant<int, kTileVectors>{});
  for (; j < n; j += N) f(j, std::integral_constant<int, 1>{});
}
