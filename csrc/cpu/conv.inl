// The depthwise causal convolution of c channels of one sequence, shared by causal_conv1d and gated_rela:
//   p_t = bias + sum_w weight[w] * x_{t-K+1+w}
// The K - 1 rows before the first are the history, or zeros.

template <typename T>
struct ConvBlock {
  int64_t kernel_size;  // K
  int64_t c;            // channels of this block
  T* weight;            // [K, c], transposed from [c, K] so that channels are contiguous
  T* bias;              // [c], zeros if there is none
  T* d_weight;          // [K, c]
  T* d_bias;            // [c]

  // The K - 1 rows before the current sequence, oldest first, and their gradient. An absent history is zeros; an absent
  // gradient is not computed.
  RowMatrix<const T> history;
  RowMatrix<T> d_history;

  static int64_t scratch(int64_t kernel_size, int64_t c) { return 2 * (kernel_size + 1) * c; }

  ConvBlock(int64_t kernel_size, int64_t c, T*& arena) : kernel_size(kernel_size), c(c) {
    weight = arena;
    bias = weight + kernel_size * c;
    d_weight = bias + c;
    d_bias = d_weight + kernel_size * c;
    arena += scratch(kernel_size, c);
  }

  void load(const T* w, const T* b) {  // w: [c, K], b: [c] or null
    for (int64_t i = 0; i < c; ++i) {
      for (int64_t j = 0; j < kernel_size; ++j) weight[j * c + i] = w[i * kernel_size + j];
      bias[i] = b ? b[i] : T(0);
    }
    std::fill(d_weight, d_weight + (kernel_size + 1) * c, T(0));
  }

  // Points history and d_history at sequence `seq` of [B, K - 1, channels] arrays, which may be null.
  void begin(int64_t seq, int64_t channels, int64_t channel, const T* initial_history, T* d_initial_history) {
    const int64_t offset = seq * (kernel_size - 1) * channels + channel;
    history = {initial_history ? initial_history + offset : nullptr, channels};
    d_history = {d_initial_history ? d_initial_history + offset : nullptr, channels};
  }

  // Stores the last K - 1 rows of the history followed by the n rows x.
  void store_final_history(RowMatrix<const T> x, int64_t n, RowMatrix<T> out) const {
    for (int64_t i = 0; i < kernel_size - 1; ++i) {
      const int64_t t = n - (kernel_size - 1) + i;
      const T* const from = t >= 0 ? x.row(t) : history.data ? history.row(t + kernel_size - 1) : nullptr;
      for (int64_t j = 0; j < c; ++j) out.row(i)[j] = from ? from[j] : T(0);
    }
  }

  // Adds the final history's gradient to rows t0 .. t0 + n of d_x, which has len rows, and for t0 = 0 to d_history.
  void add_d_final_history(RowMatrix<const T> d_final, int64_t t0, int64_t n, int64_t len, RowMatrix<T> d_x) const {
    for (int64_t i = 0; i < kernel_size - 1; ++i) {
      const int64_t t = len - (kernel_size - 1) + i;
      T* const to = t >= 0 ? (t >= t0 && t < t0 + n ? d_x.row(t) : nullptr)
                           : (t0 == 0 && d_history.data ? d_history.row(t + kernel_size - 1) : nullptr);
      if (to)
        for (int64_t j = 0; j < c; ++j) to[j] += d_final.row(i)[j];
    }
  }

  void clear_d_history() const {
    if (d_history.data)
      for (int64_t i = 0; i < kernel_size - 1; ++i) std::fill_n(d_history.row(i), c, T(0));
  }

  void store_gradients(T* d_w, T* d_b) const {
    for (int64_t i = 0; i < c; ++i) {
      for (int64_t j = 0; j < kernel_size; ++j) d_w[i * kernel_size + j] = d_weight[j * c + i];
      if (d_b) d_b[i] = d_bias[i];
    }
  }
};

// The convolution of channels [i, i + N). A kernel of size kUnrolled stays in registers.
template <typename T, int N>
struct ConvColumns {
  static constexpr int kUnrolled = 4;  // the kernel size of every published model
  using V = Vec<T, N>;
  const ConvBlock<T>& conv;
  int64_t i;
  V bias, weight[kUnrolled];

  ConvColumns(const ConvBlock<T>& conv, int64_t i) : conv(conv), i(i), bias(load<T, N>(conv.bias + i)) {
    if (conv.kernel_size == kUnrolled)
      for (int w = 0; w < kUnrolled; ++w) weight[w] = load<T, N>(conv.weight + w * conv.c + i);
  }

  // Returns p_t of the sequence x.
  V operator()(RowMatrix<const T> x, int64_t t) const {
    V p = bias;
    if (conv.kernel_size == kUnrolled && t >= kUnrolled - 1) {
      const T* row = x.row(t - kUnrolled + 1) + i;
      for (int w = 0; w < kUnrolled; ++w) p += weight[w] * load<T, N>(row + w * x.stride);
      return p;
    }
    const int64_t missing = t < conv.kernel_size - 1 ? conv.kernel_size - 1 - t : 0;  // kernel rows before the sequence
    for (int64_t w = missing; w < conv.kernel_size; ++w)
      p += load<T, N>(conv.weight + w * conv.c + i) * load<T, N>(x.row(t - conv.kernel_size + 1 + w) + i);
    if (conv.history.data)
      for (int64_t w = 0; w < missing; ++w)
        p += load<T, N>(conv.weight + w * conv.c + i) * load<T, N>(conv.history.row(t + w) + i);
    return p;
  }
};

// Computes d_x of rows [t0, t0 + n) of a sequence and adds to d_weight and d_bias. d_p [n + K - 1, c] is the gradient
// of p from row t0 on; its last K - 1 rows belong to the next block and are zeros at the end of the sequence.
template <typename T, int N>
__attribute__((noinline)) static void conv_backward_block(const ConvBlock<T>& conv, RowMatrix<const T> x, int64_t t0,
                                                          int64_t n, const T* d_p, RowMatrix<T> d_x) {
  using V = Vec<T, N>;
  constexpr int K = ConvColumns<T, N>::kUnrolled;
  const int64_t c = conv.c, kernel_size = conv.kernel_size;
  for (int64_t i = 0; i < c; i += N) {
    auto add = [i](T* sums, V v) { store<T, N>(sums + i, load<T, N>(sums + i) + v); };
    int64_t inner = n;  // first row of the unrolled loop: its whole kernel is in the sequence
    if (kernel_size == K) {
      inner = std::min(n, std::max<int64_t>(0, K - 1 - t0));
      const ConvColumns<T, N> columns(conv, i);
      V d_b{}, d_w[K]{};
      for (int64_t t = inner; t < n; ++t) {
        const V d = load<T, N>(d_p + t * c + i);
        V acc = columns.weight[K - 1] * d;
        for (int w = 0; w < K - 1; ++w) acc += columns.weight[w] * load<T, N>(d_p + (t + K - 1 - w) * c + i);
        store<T, N>(d_x.row(t0 + t) + i, acc);
        const T* const row = x.row(t0 + t - (K - 1)) + i;
        for (int w = 0; w < K; ++w) d_w[w] += d * load<T, N>(row + w * x.stride);
        d_b += d;
      }
      for (int w = 0; w < K; ++w) add(conv.d_weight + w * c, d_w[w]);
      add(conv.d_bias, d_b);
    }
    for (int64_t t = 0; t < inner; ++t) {
      V acc{};
      const V d = load<T, N>(d_p + t * c + i);
      for (int64_t w = 0; w < kernel_size; ++w) {
        acc += load<T, N>(conv.weight + w * c + i) * load<T, N>(d_p + (t + kernel_size - 1 - w) * c + i);
        const int64_t from = t0 + t - (kernel_size - 1) + w;
        if (from >= 0) add(conv.d_weight + w * c, d * load<T, N>(x.row(from) + i));
      }
      if (conv.history.data)
        for (int64_t w = 0; w < kernel_size - 1 - (t0 + t); ++w) {
          add(conv.d_weight + w * c, d * load<T, N>(conv.history.row(t0 + t + w) + i));
          if (conv.d_history.data) add(conv.d_history.row(t0 + t + w), d * load<T, N>(conv.weight + w * c + i));
        }
      store<T, N>(d_x.row(t0 + t) + i, acc);
      add(conv.d_bias, d);
    }
  }
}
