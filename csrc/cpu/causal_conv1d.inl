// causal_conv1d: one sequence at a time, all channels of a row together.

template <typename T, int N>
static void conv_sequence_forward(const CausalConv1dParams<T>& p, ConvBlock<T>& conv, int64_t seq) {
  const int64_t start = p.cu_seqlens[seq], n = p.cu_seqlens[seq + 1] - start;
  const Rows<const T> x{p.x.row(start), p.x.stride};
  conv.begin(seq, p.channels, 0, p.initial_values, nullptr);
  if (p.final_values) conv.store_last(x, n, {p.final_values + seq * (p.width - 1) * p.channels, p.channels});
  for (int64_t t0 = 0; t0 < n; t0 += kChunk)
    for (int64_t i = 0; i < p.channels; i += N) {
      const ConvTaps<T, N> taps(conv, i);
      for (int64_t t = t0; t < std::min(t0 + kChunk, n); ++t) {
        Vec<T, N> v = taps(x, t);
        if (p.silu) v *= sigmoid<T, N>(v);
        store<T, N>(p.y.row(start + t) + i, v);
      }
    }
}

template <typename T, int N>
static void conv_sequence_backward(const CausalConv1dParams<T>& p, ConvBlock<T>& conv, T* dp, int64_t seq) {
  const int64_t start = p.cu_seqlens[seq], len = p.cu_seqlens[seq + 1] - start;
  const int64_t c = p.channels, halo = p.width - 1;
  const Rows<const T> x{p.x.row(start), p.x.stride};
  const Rows<T> dx{p.dx.row(start), p.dx.stride};
  const Rows<const T> dlast{p.final_values_grad ? p.final_values_grad + seq * halo * c : nullptr, c};
  conv.begin(seq, c, 0, p.initial_values, p.initial_values_grad);
  conv.clear_history_grad();
  if (dlast.data && len == 0) conv.add_last_grad(dlast, 0, 0, 0, dx);
  std::fill(dp + kChunk * c, dp + (kChunk + halo) * c, T(0));
  // In reverse, so that the halo of a chunk, the first rows of the one after it, is at hand.
  for (int64_t t0 = len > 0 ? (len - 1) / kChunk * kChunk : -1; t0 >= 0; t0 -= kChunk) {
    const int64_t n = std::min(kChunk, len - t0);
    T* const d = dp + (kChunk - n) * c;  // the halo stands right behind the n rows
    for (int64_t i = 0; i < c; i += N) {
      const ConvTaps<T, N> taps(conv, i);
      for (int64_t t = 0; t < n; ++t) {
        Vec<T, N> g = load<T, N>(p.dy.row(start + t0 + t) + i);
        if (p.silu) {
          const Vec<T, N> pre = taps(x, t0 + t);
          g *= silu_grad<T, N>(pre, sigmoid<T, N>(pre));
        }
        store<T, N>(d + t * c + i, g);
      }
    }
    conv_backward_block<T, N>(conv, x, t0, n, d, dx);
    if (dlast.data) conv.add_last_grad(dlast, t0, n, len, dx);
    std::memmove(dp + kChunk * c, d, halo * c * sizeof(T));  // they overlap when n < halo
  }
}

template <typename T>
static int64_t causal_conv1d_scratch(const CausalConv1dParams<T>& p, bool backward) {
  return ConvBlock<T>::scratch(p.width, p.channels) + (backward ? (kChunk + p.width - 1) * p.channels : 0);
}

template <typename T, bool kBackward>
static void causal_conv1d_worker(const CausalConv1dParams<T>& p, T* scratch) {
  T* arena = scratch;
  ConvBlock<T> conv(p.width, p.channels, arena);
  with_lanes<T>(p.channels, [&](auto lanes) {
    constexpr int N = decltype(lanes)::value;
    for (int64_t item; (item = p.next->fetch_add(1)) < p.num_items();) {
      conv.load(p.weight, p.bias);
      for (int64_t seq = p.groups.begin(item); seq < p.groups.end(item); ++seq) {
        if constexpr (kBackward) {
          conv_sequence_backward<T, N>(p, conv, arena, seq);
        } else {
          conv_sequence_forward<T, N>(p, conv, seq);
        }
      }
      if constexpr (kBackward)
        conv.store_grads(p.dweight + item * p.channels * p.width, p.dbias ? p.dbias + item * p.channels : nullptr);
    }
  });
}
