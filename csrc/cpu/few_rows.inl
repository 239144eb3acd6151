// Products of few rows with a weight as it is, by dot products: packing the weight would take longer.

#include "gemm.inl"

constexpr int kFewTileRows = 4, kFewTileColumns = 4;

// acc[r][c] += the products of n elements, n <= N, of row r of a and of row c of w.
template <typename T, int N, int R, int C>
RECGRELA_INLINE void add_products(const T* a, int64_t stride, const T* const (&w)[C], int64_t k, int64_t n,
                                  Vec<T, N> (&acc)[R][C]) {
  Vec<T, N> x[R];
  for (int r = 0; r < R; ++r) x[r] = load_some<T, N>(a + r * stride + k, n);
  for (int c = 0; c < C; ++c) {
    const Vec<T, N> y = load_some<T, N>(w[c] + k, n);
    for (int r = 0; r < R; ++r) acc[r][c] += x[r] * y;
  }
}

// Computes n rows of out [n, columns] = a w^T + bias from a [n, depth] and w [columns, depth]. `bias` may be null. A
// row of the result does not depend on the other rows.
template <typename T>
__attribute__((noinline)) static void multiply_few(int64_t n, const RowMatrix<const T>& a, int64_t depth,
                                                   const RowMatrix<const T>& w, const T* bias, const RowMatrix<T>& out,
                                                   int64_t columns) {
  constexpr int64_t kColumns = kFewTileColumns;
  for (int64_t j = 0; j < columns; j += kColumns) {
    const int64_t width = std::min(kColumns, columns - j);
    const T* weights[kColumns];
    for (int64_t c = 0; c < kColumns; ++c) weights[c] = w.row(std::min(j + c, columns - 1));
    for (int64_t i = 0; i < n; i += kFewTileRows)
      with_rows<kFewTileRows>(n - i, [&](auto count) {
        constexpr int R = decltype(count)::value, N = RECGRELA_VECTOR_BYTES / sizeof(T);
        Vec<T, N> acc[R][kFewTileColumns]{};
        int64_t k = 0;
        for (; k + N <= depth; k += N) add_products<T, N>(a.row(i), a.stride, weights, k, N, acc);
        if (k < depth) add_products<T, N>(a.row(i), a.stride, weights, k, depth - k, acc);
        for (int r = 0; r < R; ++r) {
          T sums[kFewTileColumns];
          for (int c = 0; c < kFewTileColumns; ++c) sums[c] = sum<T, N>(acc[r][c]);
          for (int64_t c = 0; c < width; ++c) out.row(i + r)[j + c] = sums[c] + (bias ? bias[j + c] : T(0));
        }
      });
  }
}
