// RelaHead: one head of one sequence of gated_rela, in chunks of kChunk rows whose operands stay in cache, and the
// steps that its forward and its backward share.
//
// Everything is built from one sweep over rows with a d x d state X in registers, tile by tile:
//   X += p_t (x) u_t;  out_t += s_t X
//     numerator      p = R phi(k), u = v,         s = R phi(q)            forward
//     d_q (rotated)  p = v,        u = R phi(k),  s = d_num               forward,  X = S^T
//     d_v            p = R phi(q), u = d_num,     s = R phi(k)            backward, X = U
//     d_k (rotated)  p = d_num,    u = R phi(q),  s = v                   backward, X = U^T
// S is the sum of R phi(k) (x) v over the earlier rows, U that of R phi(q) (x) d_num over the later rows; in the
// bidirectional form both are over all rows. The causal form updates and applies X in one sweep, the bidirectional form
// in two.
//
// The gradients of the numerator and of the denominator Z = phi(q).z + eps n, with a = d_y * SiLU(g), are
//   d_num = a / Z,  d_Z = -(a.o) / Z = -(R phi(q) . d_q_rotated) / Z

#include "conv.inl"

// The sweep over n rows. kUpdate and kApply select its two statements, kReverse its direction.
template <typename T, int N, bool kUpdate, bool kApply, bool kReverse>
static void sweep(int64_t n, int64_t d, RowMatrix<const T> p, RowMatrix<const T> u, RowMatrix<const T> s, T* out,
                  T* state) {
  using V = Vec<T, N>;
  for (int64_t row = 0; row < d; row += N)
    for (int64_t col = 0; col < d; col += N) {
      V x[N];
      for (int r = 0; r < N; ++r) x[r] = load<T, N>(state + (row + r) * d + col);
      for (int64_t step = 0; step < n; ++step) {
        const int64_t t = kReverse ? n - 1 - step : step;
        if constexpr (kUpdate) {
          const T* pt = p.row(t) + row;
          const V ut = load<T, N>(u.row(t) + col);
          for (int r = 0; r < N; ++r) x[r] += pt[r] * ut;
        }
        if constexpr (kApply) {
          const T* st = s.row(t) + row;
          V even = row == 0 ? V{} : load<T, N>(out + t * d + col), odd{};
          for (int r = 0; r < N; r += 2) {
            even += st[r] * x[r];
            odd += st[r + 1] * x[r + 1];
          }
          store<T, N>(out + t * d + col, even + odd);
        }
      }
      if constexpr (kUpdate)
        for (int r = 0; r < N; ++r) store<T, N>(state + (row + r) * d + col, x[r]);
    }
}

template <typename T>
static void transpose(const T* x, T* y, int64_t d) {
  for (int64_t i = 0; i < d; ++i)
    for (int64_t j = 0; j < d; ++j) y[j * d + i] = x[i * d + j];
}

// The buffers of one thread and its current head. Buffers are [kChunk, d] unless a comment gives a shape.
template <typename T, int N>
struct RelaHead {
  using V = Vec<T, N>;
  const GatedRelaParams<T>& p;
  const int64_t d;
  ConvBlock<T> conv;
  T *fq, *rq, *fk, *rk;  // phi(q), R phi(q), phi(k), R phi(k)
  // Starts of the buffers that fk and rk point into. The bidirectional backward uses the keys twice. If a sequence is
  // short enough for the processor's cache, the buffers keep all of its keys.
  T *fk_buffer, *rk_buffer;
  int64_t cached_keys;
  T* num;    // numerator
  T *S, *z;  // [d, d], [d]
  T* z_inv;  // [kChunk] 1 / (phi(q).z + eps n)

  // backward only
  T *d_num, *d_rot;      // gradients of the numerator and of a rotated row
  T* d_p;                // [kChunk + K - 1, d] gradient of the convolution's output
  T *St, *U, *d_z, *Ut;  // [d, d] except d_z [d], the sum of d_Z phi(q); U, d_z and Ut are contiguous
  T* checkpoints;        // [chunks, d * d + d] S and z at the start of each chunk

  // The current sequence and head.
  int64_t seq = 0, head = 0, start = 0, len = 0, channel = 0;
  int64_t position = 0;            // number of rows before the first, from the initial state
  int64_t prefetch_rows = kChunk;  // distance to the row that is needed one chunk later; negative in reverse

  RelaHead(const GatedRelaParams<T>& p, T* arena, bool backward)
      : p(p), d(p.head_dim), conv(p.kernel_size, p.head_dim, arena) {
    auto take = [&](int64_t n) { return std::exchange(arena, arena + n); };
    for (T** b : {&fq, &rq, &num}) *b = take(kChunk * d);
    cached_keys = num_cached_keys(p, backward);
    fk = fk_buffer = take(std::max(kChunk, cached_keys) * d), rk = rk_buffer = take(std::max(kChunk, cached_keys) * d);
    S = take(d * d), z = take(d), z_inv = take(kChunk);
    if (!backward) return;
    for (T** b : {&d_num, &d_rot}) *b = take(kChunk * d);
    d_p = take((kChunk + history(p)) * d);
    St = take(d * d), U = take(d * d), d_z = take(d), Ut = take(d * d);
    checkpoints = take(checkpoint_elements(p));
  }

  static int64_t history(const GatedRelaParams<T>& p) { return std::max<int64_t>(p.kernel_size - 1, 0); }

  static int64_t num_cached_keys(const GatedRelaParams<T>& p, bool backward) {
    constexpr int64_t kMaxCachedKeys = 512;
    return backward && !p.causal && p.max_seqlen <= kMaxCachedKeys ? p.max_seqlen : 0;
  }

  static int64_t checkpoint_elements(const GatedRelaParams<T>& p) {
    return p.causal ? ceil_div(p.max_seqlen, kChunk) * (p.head_dim * p.head_dim + p.head_dim) : 0;
  }

  static int64_t scratch(const GatedRelaParams<T>& p, bool backward) {
    const int64_t d = p.head_dim;
    int64_t n = ConvBlock<T>::scratch(p.kernel_size, d) + 3 * kChunk * d + d * d + d + kChunk;
    n += 2 * std::max(kChunk, num_cached_keys(p, backward)) * d;
    if (backward) n += 2 * kChunk * d + (kChunk + history(p)) * d + d + 3 * d * d + checkpoint_elements(p);
    return n;
  }

  void begin(int64_t sequence, int64_t head_number) {
    seq = sequence, head = head_number;
    start = p.cu_seqlens[seq];
    len = p.cu_seqlens[seq + 1] - start;
    channel = head * d;
    position = p.initial_position ? p.initial_position[seq] : 0;
    if (p.initial_kv_state) {
      std::copy_n(kv_state_of(p.initial_kv_state), d * d + d, S);  // and z
    } else {
      std::fill_n(S, d * d + d, T(0));
    }
    if (conv.kernel_size) conv.begin(seq, p.num_heads * d, channel, p.initial_history, p.d_initial_history);
  }

  // The head's part of a kv_state, [d + 1, d]: S and then z.
  template <typename E>
  E* kv_state_of(E* kv_state) const {
    return kv_state + (seq * p.num_heads + head) * (d * d + d);
  }
  // The head's part of a history, [K - 1, d]; absent if the history is null.
  template <typename E>
  RowMatrix<E> history_of(E* history) const {
    const int64_t width = p.num_heads * d;
    return {history ? history + seq * (conv.kernel_size - 1) * width + channel : nullptr, width};
  }

  // The head's channels of the rows from t0 on, of an operand or a buffer.
  template <typename E>
  RowMatrix<E> at(const RowMatrix<E>& rows, int64_t t0) const {
    return {rows.row(start + t0) + channel, rows.stride};
  }
  RowMatrix<const T> in(const T* buffer) const { return {buffer, d}; }
  RowMatrix<const T> in_v(int64_t t0) const { return at(p.v, t0); }

  // (cos, sin) of row t at the head's channel i; null without rotary
  const T* angles(int64_t t, int64_t i) const {
    return p.rotary ? p.rotary + (position + t) * p.num_heads * d + channel + i : nullptr;
  }

  // Prefetches a cache line that is needed one chunk later. A head's rows are far apart in memory and several operands
  // are read at once, too many streams for the hardware prefetcher. Prefetching past the end of a tensor is harmless.
  template <bool kWrite = false, typename R>
  RECGRELA_INLINE void prefetch(const R& rows, int64_t row, int64_t col) {
    if (col * sizeof(T) % 64 == 0) __builtin_prefetch(rows.data + row * rows.stride + col, kWrite);
  }

  // Computes phi(x) and R phi(x) of n rows from t0 on; without rotary r points to f.
  void features(RowMatrix<const T> x, int64_t t0, int64_t n, T* f, T*& r) const {
    if (p.rotary) {
      features_of<true>(at(x, t0), n, f, r, angles(t0, 0));
    } else {
      r = f;
      features_of<false>(at(x, t0), n, f, nullptr, nullptr);
    }
  }

  // The outer loop is over columns and the inner one over rows, which keeps pointers and constants in registers.
  template <bool kRotary>
  __attribute__((noinline)) void features_of(RowMatrix<const T> x, int64_t n, T* f, T* r, const T* cs) const {
    const int64_t width = d, angle_stride = p.num_heads * d;
    for (int64_t i = 0; i < width; i += N) {
      for (int64_t t = 0; t < n; ++t) {
        prefetch(x, t + prefetch_rows, i);
        const V y = phi<T, N>(load<T, N>(x.row(t) + i));
        store<T, N>(f + t * width + i, y);
        if constexpr (kRotary)
          store<T, N>(r + t * width + i, rotate<T, N, false>(y, load<T, N>(cs + t * angle_stride + i)));
      }
    }
  }

  // Computes fk and rk of n keys from t0 on. `cached`: reuses the results of an earlier call if they were kept.
  void compute_keys(int64_t t0, int64_t n, bool cached) {
    if (cached_keys) fk = fk_buffer + t0 * d, rk = p.rotary ? rk_buffer + t0 * d : fk;
    if (!cached_keys || !cached) features(p.k, t0, n, fk, rk);
  }

  // Adds n keys from t0 on to S and z.
  void add_keys(int64_t t0, int64_t n) {
    compute_keys(t0, n, false);
    for (int64_t t = t0; t < t0 + n; ++t) prefetch(p.v, start + t + prefetch_rows, channel);
    sweep<T, N, true, false, false>(n, d, in(rk), in_v(t0), {}, nullptr, S);
    for (int64_t i = 0; i < d; i += N) {
      V acc = load<T, N>(z + i);
      for (int64_t t = 0; t < n; ++t) acc += load<T, N>(fk + t * d + i);
      store<T, N>(z + i, acc);
    }
  }

  // Adds all keys of the sequence to S and z.
  void sum_keys() {
    for (int64_t t0 = 0; t0 < len; t0 += kChunk) add_keys(t0, std::min(kChunk, len - t0));
  }

  // gated_rela_forward.inl
  void forward();
  void attend(int64_t t0, int64_t n);
  template <bool kCausal>
  void normalize(int64_t t0, int64_t n) const;
  template <bool kGate>
  void output(int64_t t0, int64_t n) const;
  void store_state() const;

  // gated_rela_backward.inl
  void backward();
  template <bool kGate>
  void backward_gate(int64_t t0, int64_t n, T* d_conv) const;
  void backward_query(int64_t t0, int64_t n) const;
  void backward_key(int64_t t0, int64_t n) const;
  void add_to_d_v(int64_t t0, int64_t n, const T* x) const;
};

// Calls f(head, group, number) for each head, by its number, and group of sequences in the queue's items.
template <typename T, typename F>
static void for_each_head(const GatedRelaParams<T>& p, T* scratch, bool backward, F f) {
  with_lanes<T>(p.head_dim, [&](auto lanes) {
    constexpr int N = decltype(lanes)::value;
    if constexpr (N > 1) {  // head_dim is even
      RelaHead<T, N> head(p, scratch, backward);
      const int64_t heads = p.heads_per_item, items_per_group = p.num_heads / heads;
      for (int64_t item; p.queue->take(item);) {
        const int64_t group = item / items_per_group, first = item % items_per_group * heads;
        for (int64_t number = first; number < first + heads; ++number) f(head, group, number);
      }
    }
  });
}
