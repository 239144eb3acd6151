// linear_scan: a few vectors of a sequence's channels at a time, whose states stay in registers from row to row. A
// complex number is a pair of neighbouring lanes, and a row of C of them 2 C elements.

// a * x, or conj(a) * x.
template <typename T, int N, bool kComplex, bool kConjugate>
RECGRELA_INLINE Vec<T, N> times(Vec<T, N> a, Vec<T, N> x) {
  if constexpr (kComplex) {
    return rotate<T, N, kConjugate>(x, a);
  } else {
    return a * x;
  }
}

// The elements i .. i + K N of the rows, of which the last vector may have fewer than N where !kWhole.
template <typename T, int N, int K, bool kComplex, bool kWhole>
struct LinearScan {
  using V = Vec<T, N>;
  const LinearScanParams<T>& p;
  int64_t i, count;  // of a vector that is not whole

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

  // g is the gradient of the state behind a row.
  void backward(int64_t group, int64_t seq) const {
    V g[K]{}, da[K]{};
    if (p.final_state_grad)
      for (int k = 0; k < K; ++k) g[k] = get(p.final_state_grad + seq * p.width, k);
    const int64_t start = p.cu_seqlens[seq];
    for (int64_t t = p.cu_seqlens[seq + 1] - 1; t >= start; --t) {
      const T *const dh = p.dh.row(t), *const a = p.a.row(t);
      const T* const before = t > start         ? p.saved_h.row(t - 1)
                              : p.initial_state ? p.initial_state + seq * p.width
                                                : nullptr;
      T *const dx = p.dx.row(t), *const out = p.da_partial ? nullptr : p.da.row(t);
      for (int k = 0; k < K; ++k) {
        const V dx_k = get(dh, k) + g[k];
        put(dx, k, dx_k);
        g[k] = times<T, N, kComplex, true>(get(a, k), dx_k);
        const V step = before ? times<T, N, kComplex, true>(get(before, k), dx_k) : V{};
        if (out) {
          put(out, k, step);
        } else {
          da[k] += step;
        }
      }
      if (p.da_partial && (t - start) % kChunk == 0) add(p.da_partial + group * p.width, da);
    }
    if (p.initial_state_grad)
      for (int k = 0; k < K; ++k) put(p.initial_state_grad + seq * p.width, k, g[k]);
  }

  // What a chunk of rows sums up to: long sums lose less in two steps.
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
static void linear_scan_item(const LinearScanParams<T>& p, int64_t group, int64_t part) {
  constexpr int N = RECGRELA_VECTOR_BYTES / sizeof(T), K = 4;
  int64_t i = part * p.part;
  const int64_t end = std::min(i + p.part, p.width);
  for (; i + K * N <= end; i += K * N) LinearScan<T, N, K, kComplex, true>{p, i, N}.template run<kBackward>(group);
  for (; i + N <= end; i += N) LinearScan<T, N, 1, kComplex, true>{p, i, N}.template run<kBackward>(group);
  if (i < end) LinearScan<T, N, 1, kComplex, false>{p, i, end - i}.template run<kBackward>(group);
}

template <typename T, bool kBackward>
static void linear_scan_worker(const LinearScanParams<T>& p, T*) {
  for (int64_t item; (item = p.next->fetch_add(1)) < p.num_items();) {
    const int64_t group = item / p.num_parts(), part = item % p.num_parts();
    if (p.complex) {
      linear_scan_item<T, kBackward, true>(p, group, part);
    } else {
      linear_scan_item<T, kBackward, false>(p, group, part);
    }
  }
}
