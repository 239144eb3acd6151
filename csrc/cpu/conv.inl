// The depthwise causal convolution on a block of c channels of one sequence, shared by both ops:
//   p_t = bias + sum_w weight[w] * x_{t-K+1+w}, zero before the start.

template <typename T>
struct ConvBlock {
  int64_t width;  // K
  int64_t c;      // channels of this block
  T* weight;      // [K, c], transposed from [c, K] so that channels are contiguous
  T* bias;        // [c], zero where there is none
  T* dweight;     // [K, c]
  T* dbias;       // [c]

  static int64_t scratch(int64_t width, int64_t c) { return 2 * (width + 1) * c; }

  ConvBlock(int64_t width, int64_t c, T*& arena) : width(width), c(c) {
    weight = arena;
    bias = weight + width * c;
    dweight = bias + c;
    dbias = dweight + width * c;
    arena += scratch(width, c);
  }

  void load(const T* w, const T* b) {  // w: [c, K], b: [c] or null
    for (int64_t i = 0; i < c; ++i) {
      for (int64_t j = 0; j < width; ++j) weight[j * c + i] = w[i * width + j];
      bias[i] = b ? b[i] : T(0);
    }
    std::fill(dweight, dweight + (width + 1) * c, T(0));
  }

  void store_grads(T* dw, T* db) const {
    for (int64_t i = 0; i < c; ++i) {
      for (int64_t j = 0; j < width; ++j) dw[i * width + j] = dweight[j * c + i];
      if (db) db[i] = dbias[i];
    }
  }
};

// The taps and the bias at channels [i, i + N): held in registers while t runs, when there are kUnrolled of them.
template <typename T, int N>
struct ConvTaps {
  static constexpr int kUnrolled = 4;  // the width of every published model
  using V = Vec<T, N>;
  const ConvBlock<T>& conv;
  int64_t i;
  V bias, tap[kUnrolled];

  ConvTaps(const ConvBlock<T>& conv, int64_t i) : conv(conv), i(i), bias(load<T, N>(conv.bias + i)) {
    if (conv.width == kUnrolled)
      for (int w = 0; w < kUnrolled; ++w) tap[w] = load<T, N>(conv.weight + w * conv.c + i);
  }

  // p_t; x points at the sequence's row 0
  V operator()(Rows<const T> x, int64_t t) const {
    V p = bias;
    if (conv.width == kUnrolled && t >= kUnrolled - 1) {
      const T* row = x.row(t - kUnrolled + 1) + i;
      for (int w = 0; w < kUnrolled; ++w) p += tap[w] * load<T, N>(row + w * x.stride);
      return p;
    }
    for (int64_t w = t < conv.width - 1 ? conv.width - 1 - t : 0; w < conv.width; ++w)
      p += load<T, N>(conv.weight + w * conv.c + i) * load<T, N>(x.row(t - conv.width + 1 + w) + i);
    return p;
  }
};

// The gradients of rows [t0, t0 + n) of a sequence from dp [n + K - 1, c], the gradient of p from row t0
// on: K - 1 rows beyond the block are needed (zero at the sequence's end). Sets dx, adds to the weights'.
template <typename T, int N>
static void conv_backward_block(const ConvBlock<T>& conv, Rows<const T> x, int64_t t0, int64_t n, const T* dp,
                                Rows<T> dx) {
  using V = Vec<T, N>;
  const int64_t c = conv.c, width = conv.width;
  for (int64_t t = 0; t < n; ++t)
    for (int64_t i = 0; i < c; i += N) {
      V acc{};
      for (int64_t w = 0; w < width; ++w)
        acc += load<T, N>(conv.weight + w * c + i) * load<T, N>(dp + (t + width - 1 - w) * c + i);
      store<T, N>(dx.row(t0 + t) + i, acc);
    }
  for (int64_t i = 0; i < c; i += N) {
    V db{};
    for (int64_t t = 0; t < n; ++t) db += load<T, N>(dp + t * c + i);
    store<T, N>(conv.dbias + i, load<T, N>(conv.dbias + i) + db);
    for (int64_t w = 0; w < width; ++w) {
      V dw{};
      const int64_t shift = w - width + 1;
      for (int64_t t = t0 + shift < 0 ? -(t0 + shift) : 0; t < n; ++t)
        dw += load<T, N>(dp + t * c + i) * load<T, N>(x.row(t0 + t + shift) + i);
      store<T, N>(conv.dweight + w * c + i, load<T, N>(conv.dweight + w * c + i) + dw);
    }
  }
}
