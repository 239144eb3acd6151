// The depthwise causal convolution on a block of c channels of one sequence, shared by both ops:
//   p_t = bias + sum_w weight[w] * x_{t-K+1+w}
// where the K - 1 rows before the start are a state's, or zero.

template <typename T>
struct ConvBlock {
  int64_t width;  // K
  int64_t c;      // channels of this block
  T* weight;      // [K, c], transposed from [c, K] so that channels are contiguous
  T* bias;        // [c], zero where there is none
  T* dweight;     // [K, c]
  T* dbias;       // [c]

  // The K - 1 rows before the sequence at work, from the oldest on, and their gradient; null: zero, not wanted.
  Rows<const T> history;
  Rows<T> dhistory;

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

  // The rows before sequence `seq` among `channels`, from [B, K - 1, channels] arrays that may be null.
  void begin(int64_t seq, int64_t channels, int64_t channel, const T* initial, T* initial_grad) {
    const int64_t offset = seq * (width - 1) * channels + channel;
    history = {initial ? initial + offset : nullptr, channels};
    dhistory = {initial_grad ? initial_grad + offset : nullptr, channels};
  }

  // The last K - 1 rows of a sequence of n rows and its history.
  void store_last(Rows<const T> x, int64_t n, Rows<T> out) const {
    for (int64_t i = 0; i < width - 1; ++i) {
      const int64_t t = n - (width - 1) + i;
      const T* const from = t >= 0 ? x.row(t) : history.data ? history.row(t + width - 1) : nullptr;
      for (int64_t j = 0; j < c; ++j) out.row(i)[j] = from ? from[j] : T(0);
    }
  }

  // Their gradient, to the rows [t0, t0 + n) of the len of dx and, with the first of them, to the history.
  void add_last_grad(Rows<const T> dlast, int64_t t0, int64_t n, int64_t len, Rows<T> dx) const {
    for (int64_t i = 0; i < width - 1; ++i) {
      const int64_t t = len - (width - 1) + i;
      T* const to = t >= 0 ? (t >= t0 && t < t0 + n ? dx.row(t) : nullptr)
                           : (t0 == 0 && dhistory.data ? dhistory.row(t + width - 1) : nullptr);
      if (to)
        for (int64_t j = 0; j < c; ++j) to[j] += dlast.row(i)[j];
    }
  }

  void clear_history_grad() const {
    if (dhistory.data)
      for (int64_t i = 0; i < width - 1; ++i) std::fill_n(dhistory.row(i), c, T(0));
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
    const int64_t missing = t < conv.width - 1 ? conv.width - 1 - t : 0;  // taps before the start
    for (int64_t w = missing; w < conv.width; ++w)
      p += load<T, N>(conv.weight + w * conv.c + i) * load<T, N>(x.row(t - conv.width + 1 + w) + i);
    if (conv.history.data)
      for (int64_t w = 0; w < missing; ++w)
        p += load<T, N>(conv.weight + w * conv.c + i) * load<T, N>(conv.history.row(t + w) + i);
    return p;
  }
};

// The gradients of rows [t0, t0 + n) of a sequence from dp [n + K - 1, c], the gradient of p from row t0
// on: K - 1 rows beyond the block are needed (zero at the sequence's end). Sets dx, adds to the weights'.
template <typename T, int N>
__attribute__((noinline)) static void conv_backward_block(const ConvBlock<T>& conv, Rows<const T> x, int64_t t0,
                                                          int64_t n, const T* dp, Rows<T> dx) {
  using V = Vec<T, N>;
  constexpr int K = ConvTaps<T, N>::kUnrolled;
  const int64_t c = conv.c, width = conv.width;
  for (int64_t i = 0; i < c; i += N) {
    auto add = [i](T* sums, V v) { store<T, N>(sums + i, load<T, N>(sums + i) + v); };
    int64_t inner = n;  // the first row from which all taps are unrolled
    if (width == K) {
      inner = std::min(n, std::max<int64_t>(0, K - 1 - t0));
      const ConvTaps<T, N> taps(conv, i);
      V db{}, dw[K]{};
      for (int64_t t = inner; t < n; ++t) {
        const V d = load<T, N>(dp + t * c + i);
        V acc = taps.tap[K - 1] * d;
        for (int w = 0; w < K - 1; ++w) acc += taps.tap[w] * load<T, N>(dp + (t + K - 1 - w) * c + i);
        store<T, N>(dx.row(t0 + t) + i, acc);
        const T* const row = x.row(t0 + t - (K - 1)) + i;
        for (int w = 0; w < K; ++w) dw[w] += d * load<T, N>(row + w * x.stride);
        db += d;
      }
      for (int w = 0; w < K; ++w) add(conv.dweight + w * c, dw[w]);
      add(conv.dbias, db);
    }
    for (int64_t t = 0; t < inner; ++t) {
      V acc{};
      const V d = load<T, N>(dp + t * c + i);
      for (int64_t w = 0; w < width; ++w) {
        acc += load<T, N>(conv.weight + w * c + i) * load<T, N>(dp + (t + width - 1 - w) * c + i);
        const int64_t from = t0 + t - (width - 1) + w;
        if (from >= 0) add(conv.dweight + w * c, d * load<T, N>(x.row(from) + i));
      }
      if (conv.history.data)
        for (int64_t w = 0; w < width - 1 - (t0 + t); ++w) {
          add(conv.dweight + w * c, d * load<T, N>(conv.history.row(t0 + t + w) + i));
          if (conv.dhistory.data) add(conv.dhistory.row(t0 + t + w), d * load<T, N>(conv.weight + w * c + i));
        }
      store<T, N>(dx.row(t0 + t) + i, acc);
      add(conv.dbias, d);
    }
  }
}
