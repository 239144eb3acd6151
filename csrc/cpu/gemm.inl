// The inner loop of matrix products: a tile of the result held in registers.

// Rows and columns (in vectors) of a tile: its sums, a row of b and an element of a fill the register file.
constexpr int kTileRows = RECGRELA_VECTOR_BYTES == 64 ? 12 : 6, kTileVectors = 2;

// acc[r][c] += sum over k < n of a[r kRow + k kStep] b[k stride + c N .. + N]
template <typename T, int N, int kRow, int kStep, int R, int C>
RECGRELA_INLINE void multiply(int64_t n, const T* a, const T* b, int64_t stride, Vec<T, N> (&acc)[R][C]) {
  for (int64_t k = 0; k < n; ++k, a += kStep, b += stride) {
    Vec<T, N> row[C];
    for (int c = 0; c < C; ++c) row[c] = load<T, N>(b + c * N);
    for (int r = 0; r < R; ++r) {
      const Vec<T, N> x = splat<T, N>(a[r * kRow]);
      for (int c = 0; c < C; ++c) acc[r][c] += x * row[c];
    }
  }
}

template <typename V, int R, int C>
RECGRELA_INLINE void clear(V (&acc)[R][C]) {
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < C; ++c) acc[r][c] = V{};
}
