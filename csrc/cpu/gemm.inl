// Matrix products by tiles of the result that are held in registers.

// Rows and columns (in vectors) of a tile: its sums, a row of b and an element of a fill the register file.
constexpr int kTileRows = RECGRELA_VECTOR_BYTES == 64 ? 12 : 6, kTileVectors = 2;

template <int64_t kStride>
using Stride = std::integral_constant<int64_t, kStride>;

// acc[r][c] += sum over k < n of a[r row + k step] b[k stride + c N .. + N], n > 0. Strides that are constants cost
// no registers. (A loop that may run no times would keep a second copy of the sums.)
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
RECGRELA_INLINE void load_tile(Rows<const T> from, Vec<T, N> (&acc)[R][C]) {
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < C; ++c) acc[r][c] = load<T, N>(from.row(r) + c * N);
}

template <typename T, int N, int R, int C>
RECGRELA_INLINE void store_tile(Rows<T> to, const Vec<T, N> (&acc)[R][C]) {
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < C; ++c) store<T, N>(to.row(r) + c * N, acc[r][c]);
}

// out = start + a b. Never inlined: a constant of the surrounding code in a register would push a sum out of it.
template <typename T, int N, int R, int C, typename Row, typename Step>
__attribute__((noinline)) static void multiply_tile(int64_t n, const T* a, Row row, Step step, const T* b,
                                                    int64_t stride, Rows<const T> start, Rows<T> out) {
  Vec<T, N> acc[R][C];
  load_tile<T, N>(start, acc);
  multiply<T, N>(n, a, row, step, b, stride, acc);
  store_tile<T, N>(out, acc);
}

// The same for tiles that may reach beyond the last of out's columns; start and out may be one.
template <typename T, int N, int R, int C, typename Row, typename Step>
static inline void multiply_tile(int64_t n, const T* a, Row row, Step step, const T* b, int64_t stride,
                                 Rows<const T> start, Rows<T> out, int64_t columns) {
  if (columns >= C * N) return multiply_tile<T, N, R, C>(n, a, row, step, b, stride, start, out);
  T tile[R * C * N]{};
  for (int r = 0; r < R; ++r) std::copy_n(start.row(r), columns, tile + r * C * N);
  multiply_tile<T, N, R, C>(n, a, row, step, b, stride, {tile, C * N}, {tile, C * N});
  for (int r = 0; r < R; ++r) std::copy_n(tile + r * C * N, columns, out.row(r));
}

// Runs f(std::integral_constant<int, n>), 1 <= n <= R.
template <int R = kTileRows, typename F>
static inline void with_rows(int64_t n, F&& f) {
  if constexpr (R > 1) {
    if (n < R) return with_rows<R - 1>(n, static_cast<F&&>(f));
  }
  f(std::integral_constant<int, R>{});
}

// Deals n rows out to tiles of almost equal height and runs f(first row, std::integral_constant<int, rows>).
template <typename F>
static inline void for_row_tiles(int64_t n, F&& f) {
  const int64_t tiles = (n + kTileRows - 1) / kTileRows;
  for (int64_t tile = 0, row = 0; tile < tiles; ++tile) {
    const int64_t rows = (n - row + tiles - tile - 1) / (tiles - tile);
    with_rows(rows, [&](auto count) { f(row, count); });
    row += rows;
  }
}

// Runs f(first column, std::integral_constant<int, vectors>) over n columns, a multiple of N.
template <int N, typename F>
static inline void for_column_tiles(int64_t n, F&& f) {
  int64_t j = 0;
  for (; j + kTileVectors * N <= n; j += kTileVectors * N) f(j, std::integral_constant<int, kTileVectors>{});
  for (; j < n; j += N) f(j, std::integral_constant<int, 1>{});
}
