// The depthwise convolution of the next row of a sequence, shared by causal_conv1d_step and gated_rela_step.

template <typename T>
struct ConvStep {
  const int64_t kernel_size, channels;
  T *const weight, *const bias;  // [K, C], transposed from [C, K] so that channels are contiguous; [C]

  static int64_t scratch(int64_t kernel_size, int64_t channels) { return (kernel_size + 1) * channels; }

  // `b` may be null.
  ConvStep(int64_t kernel_size, int64_t channels, const T* w, const T* b, T* arena)
      : kernel_size(kernel_size), channels(channels), weight(arena), bias(arena + kernel_size * channels) {
    for (int64_t i = 0; i < channels; ++i) {
      for (int64_t k = 0; k < kernel_size; ++k) weight[k * channels + i] = w[i * kernel_size + k];
      bias[i] = b ? b[i] : T(0);
    }
  }

  // Returns the convolution at channels i .. i + N of the row x, and moves x into the history [K - 1, C].
  template <int N>
  Vec<T, N> next(Vec<T, N> x, T* history, int64_t i) const {
    Vec<T, N> sum = load<T, N>(bias + i) + load<T, N>(weight + (kernel_size - 1) * channels + i) * x;
    T* row = history + i;
    for (int64_t k = 0; k < kernel_size - 1; ++k, row += channels) {
      sum += load<T, N>(weight + k * channels + i) * load<T, N>(row);
      store<T, N>(row, k < kernel_size - 2 ? load<T, N>(row + channels) : x);
    }
    return sum;
  }
};
