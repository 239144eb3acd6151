// linear_scan: a few vectors of channels of a sequence at a time. Their states stay in registers from row to row. A
// complex number is a pair of adjacent lanes; a row of C complex numbers has 2 C elements.

// a * x, or conj(a) * x.
template <typename T, int N, bool kComplex, bool kConjugate>
RECGRELA_INLINE Vec<T, N> times(Vec<T, N> a, Vec<T, N> x) {
  if constexpr (kComplex) {
    return rotate<T, N, kConjugate>(x, a);
  } else {
    return a * x;
  }
}

// The scan of elements i .. i + K N of the rows. Unless kWhole, K is 1 and the vector has `count` < N elements.
template <typename T, int N, int K, bool kComplex, bool kWhole>
struct LinearScan {
  using V = Vec<T, N>;
  const LinearScanParams<T>& p;
  int64_t i, count;

  V get(const T* row, int k) const {
    if constexpr (kWhole) return load<T, N>(row + i + k * N);
    return load_some<T, N>(row + i, count);
  }
  void put(T* row, int k, V v) const {
    if constexpr (kWhole) return store<T, N>(row + i + k * N, v);
    store_some<T, N>(row + i, v, count);
  }

  void forward(int64_t seq) const {
    V h[K]{};
    if (p.initial_state)
      for (int k = 0; k < K; ++k) h[k] = get(p.initial_state + seq * p.width, k);
    for (int64_t t = p.cu_seqlens[seq]; t < p.cu_seqlens[seq + 1]; ++t) {
      const T *const x = p.x.row(t), *const a = p.a.row(t);
      T* const out = p.h.row(t);
      for (int k = 0; k < K; ++k) {
        h[k] = times<T, N, kComplex, false>(get(a, k), h[k]) + get(x, k);
        put(out, k, h[k]);
      }
    }
    if (p.final_state)
      for (int k = 0; k < K; ++k) put(p.final_state + seq * p.width, k, h[k]);
  }

  // g is the gradient of the state after a row.
  void backward(int64_t group, int64_t seq) const {
    V g[K]{}, d_a[K]{};
    if (p.d_final_state)
      for (int k = 0; k < K; ++k) g[k] = get(p.d_final_state + seq * p.width, k);
    const int64_t start = p.cu_seqlens[seq];
    for (int64_t t = p.cu_seqlens[seq + 1] - 1; t >= start; --t) {
      const T *const d_h = p.d_h.row(t), *const a = p.a.row(t);
      const T* const previous_h = t > start         ? p.saved_h.row(t - 1)
                                  : p.initial_state ? p.initial_state + seq * p.width
                                                    : nullptr;
      T *const d_x = p.d_x.row(t), *const d_a_row = p.d_a_partial ? nullptr : p.d_a.row(t);
      for (int k = 0; k < K; ++k) {
        const V d_x_k = get(d_h, k) + g[k];
        put(d_x, k, d_x_k);
        g[k] = times<T, N, kComplex, true>(get(a, k), d_x_k);
        const V d_a_k = previous_h ? times<T, N, kComplex, true>(get(previous_h, k), d_x_k) : V{};
        if (d_a_row) {
          put(d_a_row, k, d_a_k);
        } else {
          d_a[k] += d_a_k;
        }
      }
      if (p.d_a_partial && (t - start) % kChunk == 0) add(p.d_a_partial + group * p.width, d_a);
    }
    if (p.d_initial_state)
      for (int k = 0; k < K; ++k) put(p.d_initial_state + seq * p.width, k, g[k]);
  }

  // Adds the sums over a chunk of rows and clears them: summing in two steps loses less precision.
  void add(T* sums, V (&terms)[K]) const {
    for (int k = 0; k < K; ++k) {
      put(sums, k, get(sums, k) + terms[k]);
      terms[k] = V{};
    }
  }

  template <bool kBackward>
  void run(int64_t group) const {
    for (int64_t seq = p.groups.begin(group); seq < p.groups.end(group); ++seq) {
      if constexpr (kBackward) {
        backward(group, seq);
      } else {
        forward(seq);
      }
    }
  }
};

template <typename T, bool kBackward, bool kComplex>
static void linear_scan_item(const LinearScanParams<T>& p, int64_t group, int64_t number) {
  constexpr int N = RECGRELA_VECTOR_BYTES / sizeof(T), K = 4;
  int64_t i = number * p.item_width;
  const int64_t end = std::min(i + p.item_width, p.width);
  for (; i + K * N <= end; i += K * N) LinearScan<T, N, K, kComplex, true>{p, i, N}.template run<kBackward>(group);
  for (; i + N <= end; i += N) LinearScan<T, N, 1, kComplex, true>{p, i, N}.template run<kBackward>(group);
  if (i < end) LinearScan<T, N, 1, kComplex, false>{p, i, end - i}.template run<kBackward>(group);
}

template <typename T, bool kBackward>
static void linear_scan_worker(const LinearScanParams<T>& p, T*) {
  for (int64_t item; p.queue->take(item);) {
    const int64_t group = item / p.items_per_group(), number = item % p.items_per_group();
    if (p.complex) {
      linear_scan_item<T, kBackward, true>(p, group, number);
    } else {
      linear_scan_item<T, kBackward, false>(p, group, number);
    }
  }
}

template <typename T>
static constexpr LinearScanKernels<T> kKernels{no_scratch<LinearScanParams<T>>, linear_scan_worker<T, false>,
                                               linear_scan_worker<T, true>};
