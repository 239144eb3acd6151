// causal_conv1d: one sequence at a time, all channels of a row together, in chunks of kChunk rows.

#include "conv.inl"

template <typename T, int N>
static void conv_sequence_forward(const CausalConv1dParams<T>& p, ConvBlock<T>& conv, int64_t seq) {
  const int64_t start = p.cu_seqlens[seq], n = p.cu_seqlens[seq + 1] - start;
  const RowMatrix<const T> x{p.x.row(start), p.x.stride};
  conv.begin(seq, p.channels, 0, p.initial_history, nullptr);
  if (p.final_history)
    conv.store_final_history(x, n, {p.final_history + seq * (p.kernel_size - 1) * p.channels, p.channels});
  for (int64_t t0 = 0; t0 < n; t0 += kChunk)
    for (int64_t i = 0; i < p.channels; i += N) {
      const ConvColumns<T, N> columns(conv, i);
      for (int64_t t = t0; t < std::min(t0 + kChunk, n); ++t) {
        Vec<T, N> v = columns(x, t);
        if (p.silu) v *= sigmoid<T, N>(v);
        store<T, N>(p.y.row(start + t) + i, v);
      }
    }
}

template <typename T, int N>
static void conv_sequence_backward(const CausalConv1dParams<T>& p, ConvBlock<T>& conv, T* d_p, int64_t seq) {
  const int64_t start = p.cu_seqlens[seq], len = p.cu_seqlens[seq + 1] - start;
  const int64_t c = p.channels, history = p.kernel_size - 1;
  const RowMatrix<const T> x{p.x.row(start), p.x.stride};
  const RowMatrix<T> d_x{p.d_x.row(start), p.d_x.stride};
  const RowMatrix<const T> d_final{p.d_final_history ? p.d_final_history + seq * history * c : nullptr, c};
  conv.begin(seq, c, 0, p.initial_history, p.d_initial_history);
  conv.clear_d_history();
  if (d_final.data && len == 0) conv.add_d_final_history(d_final, 0, 0, 0, d_x);
  std::fill(d_p + kChunk * c, d_p + (kChunk + history) * c, T(0));
  // Chunks run in reverse: each needs the gradients of the first K - 1 rows of the next one.
  for (int64_t t0 = len > 0 ? (len - 1) / kChunk * kChunk : -1; t0 >= 0; t0 -= kChunk) {
    const int64_t n = std::min(kChunk, len - t0);
    T* const d = d_p + (kChunk - n) * c;  // the next chunk's rows follow these n
    for (int64_t i = 0; i < c; i += N) {
      const ConvColumns<T, N> columns(conv, i);
      for (int64_t t = 0; t < n; ++t) {
        Vec<T, N> g = load<T, N>(p.d_y.row(start + t0 + t) + i);
        if (p.silu) {
          const Vec<T, N> pre = columns(x, t0 + t);
          g *= silu_grad<T, N>(pre, sigmoid<T, N>(pre));
        }
        store<T, N>(d + t * c + i, g);
      }
    }
    conv_backward_block<T, N>(conv, x, t0, n, d, d_x);
    if (d_final.data) conv.add_d_final_history(d_final, t0, n, len, d_x);
    std::memmove(d_p + kChunk * c, d, history * c * sizeof(T));  // the rows overlap if n < K - 1
  }
}

template <typename T>
static int64_t causal_conv1d_scratch(const CausalConv1dParams<T>& p, bool backward) {
  return ConvBlock<T>::scratch(p.kernel_size, p.channels) + (backward ? (kChunk + p.kernel_size - 1) * p.channels : 0);
}

template <typename T, bool kBackward>
static void causal_conv1d_worker(const CausalConv1dParams<T>& p, T* scratch) {
  T* arena = scratch;
  ConvBlock<T> conv(p.kernel_size, p.channels, arena);
  with_lanes<T>(p.channels, [&](auto lanes) {
    constexpr int N = decltype(lanes)::value;
    for (int64_t group; p.queue->take(group);) {
      conv.load(p.weight, p.bias);
      for (int64_t seq = p.groups.begin(group); seq < p.groups.end(group); ++seq) {
        if constexpr (kBackward) {
          conv_sequence_backward<T, N>(p, conv, arena, seq);
        } else {
          conv_sequence_forward<T, N>(p, conv, seq);
        }
      }
      if constexpr (kBackward)
        conv.store_gradients(p.d_weight + group * p.channels * p.kernel_size,
                             p.d_bias ? p.d_bias + group * p.channels : nullptr);
    }
  });
}

template <typename T>
static constexpr CausalConv1dKernels<T> kKernels{causal_conv1d_scratch<T>, causal_conv1d_worker<T, false>,
                                                 causal_conv1d_worker<T, true>};
