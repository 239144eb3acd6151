// The forward of RelaHead.

template <typename T, int N>
void RelaHead<T, N>::forward() {
  if (!p.causal) sum_keys();
  for (int64_t t0 = 0; t0 < len; t0 += kChunk) {
    const int64_t n = std::min(kChunk, len - t0);
    attend(t0, n);
    if (p.g.data) {
      output<true>(t0, n);
    } else {
      output<false>(t0, n);
    }
  }
  if (p.final_kv_state) store_state();
}

// Computes num and z_inv of n rows. The causal form first adds their keys to S and z.
template <typename T, int N>
void RelaHead<T, N>::attend(int64_t t0, int64_t n) {
  features(p.q, t0, n, fq, rq);
  if (p.causal) {
    features(p.k, t0, n, fk, rk);
    sweep<T, N, true, true, false>(n, d, in(rk), in_v(t0), in(rq), num, S);
    normalize<true>(t0, n);
  } else {
    sweep<T, N, false, true, false>(n, d, {}, {}, in(rq), num, S);
    normalize<false>(t0, n);
  }
}

// Computes z_inv of n rows from fq and z. The causal form adds each row of fk to z first.
template <typename T, int N>
template <bool kCausal>
__attribute__((noinline)) void RelaHead<T, N>::normalize(int64_t t0, int64_t n) const {
  const int64_t width = d;
  for (int64_t t = 0; t < n; ++t) {
    V dot{};
    for (int64_t i = 0; i < width; i += N) {
      V zi = load<T, N>(z + i);
      if constexpr (kCausal) {
        zi += load<T, N>(fk + t * width + i);
        store<T, N>(z + i, zi);
      }
      dot += load<T, N>(fq + t * width + i) * zi;
    }
    z_inv[t] = T(1) / (sum<T, N>(dot) + p.eps * T(kCausal ? position + t0 + t + 1 : len));
  }
}

// Computes y of n rows. The outer loop is over columns, which keeps pointers and constants in registers.
template <typename T, int N>
template <bool kGate>
__attribute__((noinline)) void RelaHead<T, N>::output(int64_t t0, int64_t n) const {
  const int64_t width = d;
  const RowMatrix<const T> v = in_v(0), gate = kGate ? at(p.g, t0) : v;
  const RowMatrix<T> y = at(p.y, t0);
  const bool convolves = conv.kernel_size > 0;
  for (int64_t i = 0; i < width; i += N) {
    const ConvColumns<T, N> columns(conv, i);
    for (int64_t t = 0; t < n; ++t) {
      prefetch(v, t0 + t + prefetch_rows, i);
      if constexpr (kGate) prefetch(gate, t + prefetch_rows, i);
      prefetch<true>(y, t + prefetch_rows, i);
      V out = load<T, N>(num + t * width + i) * z_inv[t];
      if (convolves) {
        const V c = columns(v, t0 + t);
        out += c * sigmoid<T, N>(c);
      }
      if constexpr (kGate) {
        const V g = load<T, N>(gate.row(t) + i);
        out *= g * sigmoid<T, N>(g);
      }
      store<T, N>(y.row(t) + i, out);
    }
  }
}

template <typename T, int N>
void RelaHead<T, N>::store_state() const {
  std::copy_n(S, d * d + d, kv_state_of(p.final_kv_state));  // and z
  if (conv.kernel_size) conv.store_final_history(in_v(0), len, history_of(p.final_history));
  if (head == 0) p.final_position[seq] = position + len;
}
