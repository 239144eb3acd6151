// gated_rela: one head of one sequence at a time, in chunks of kChunk tokens whose operands stay in cache.
//
// Everything is built from one sweep over tokens with a d x d state X held in registers, tile by tile:
//   X += p_t (x) u_t;  out_t += s_t X
//     numerator   p = R phi(k), u = v,         s = R phi(q)            forward
//     dq (rot.)   p = v,        u = R phi(k),  s = dnum                forward,  X = S^T
//     dv          p = R phi(q), u = dnum,      s = R phi(k)            backward, X = U
//     dk (rot.)   p = dnum,     u = R phi(q),  s = v                   backward, X = U^T
// S sums R phi(k) (x) v over the tokens before (all, if bidirectional), U sums R phi(q) (x) dnum over the
// tokens after. The causal form updates and applies in one sweep, the bidirectional one in two.
// With a = dy * SiLU(g), Z = phi(q).z + eps n:  dnum = a / Z,  dZ = -(a.o) / Z = -(R phi(q) . dq_rot) / Z.

template <typename T, int N, bool kUpdate, bool kApply, bool kReverse>
static void sweep(int64_t n, int64_t d, Rows<const T> p, Rows<const T> u, Rows<const T> s, T* out, T* state) {
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

// One worker's buffers, and the steps that both directions share. Rows are [kChunk, d] unless said otherwise.
template <typename T, int N>
struct RelaHead {
  using V = Vec<T, N>;
  const GatedRelaParams<T>& p;
  const int64_t d;
  ConvBlock<T> conv;
  T *fq, *rq, *fk, *rk;  // phi(q), R phi(q), phi(k), R phi(k)
  // Where fk and rk begin. The bidirectional backward needs the keys twice and keeps those of a sequence that is
  // not too long for the cache; then fk and rk move along them.
  T *fk0, *rk0;
  int64_t kept_keys;
  T* num;    // numerator
  T *S, *z;  // [d, d], [d]
  T* z_inv;  // [kChunk] 1 / (phi(q).z + eps n)
  // backward
  T *dnum, *drot;       // gradients of the numerator and of a rotated row
  T* dp;                // [kChunk + K - 1, d] gradient of the convolution's output
  T *St, *U, *dz, *Ut;  // [d, d] but dz [d], the sum of dZ phi(q), which stands behind U
  T* saved;             // [chunks, d * d + d]: S and z at the start of each chunk

  // the sequence and head at work
  int64_t seq = 0, head = 0, start = 0, len = 0, channel = 0;
  int64_t before = 0;      // rows before the first, in a state that the sequence begins from
  int64_t ahead = kChunk;  // rows from a row to the one that will be needed a chunk later; negative in reverse

  RelaHead(const GatedRelaParams<T>& p, T* arena, bool backward)
      : p(p), d(p.head_dim), conv(p.conv_width, p.head_dim, arena) {
    auto take = [&](int64_t n) { return std::exchange(arena, arena + n); };
    for (T** b : {&fq, &rq, &num}) *b = take(kChunk * d);
    kept_keys = keys_to_keep(p, backward);
    fk = fk0 = take(std::max(kChunk, kept_keys) * d), rk = rk0 = take(std::max(kChunk, kept_keys) * d);
    S = take(d * d), z = take(d), z_inv = take(kChunk);
    if (!backward) return;
    for (T** b : {&dnum, &drot}) *b = take(kChunk * d);
    dp = take((kChunk + std::max<int64_t>(p.conv_width - 1, 0)) * d);
    St = take(d * d), U = take(d * d), dz = take(d), Ut = take(d * d);
    saved = take(saved_elements(p));
  }

  static int64_t chunks_of(int64_t len) { return (len + kChunk - 1) / kChunk; }

  static int64_t keys_to_keep(const GatedRelaParams<T>& p, bool backward) {
    constexpr int64_t kMost = 512;
    return backward && !p.causal && p.max_seqlen <= kMost ? p.max_seqlen : 0;
  }

  static int64_t saved_elements(const GatedRelaParams<T>& p) {
    return p.causal ? chunks_of(p.max_seqlen) * (p.head_dim * p.head_dim + p.head_dim) : 0;
  }

  static int64_t scratch(const GatedRelaParams<T>& p, bool backward) {
    const int64_t d = p.head_dim, halo = std::max<int64_t>(p.conv_width - 1, 0);
    int64_t n = ConvBlock<T>::scratch(p.conv_width, d) + 3 * kChunk * d + d * d + d + kChunk;
    n += 2 * std::max(kChunk, keys_to_keep(p, backward)) * d;
    if (backward) n += 2 * kChunk * d + (kChunk + halo) * d + d + 3 * d * d + saved_elements(p);
    return n;
  }

  void begin(int64_t sequence, int64_t head_number) {
    seq = sequence, head = head_number;
    start = p.cu_seqlens[seq];
    len = p.cu_seqlens[seq + 1] - start;
    channel = head * d;
    before = p.initial_count ? p.initial_count[seq] : 0;
    copy_or_clear(state_of(p.initial_sums), S);  // and z
    if (conv.width) conv.begin(seq, p.num_heads * d, channel, p.initial_values, p.initial_values_grad);
  }

  // The head's sums in a state, [d + 1, d]: those of S and z
  template <typename U_>
  U_* state_of(U_* sums) const {
    return sums ? sums + (seq * p.num_heads + head) * (d * d + d) : nullptr;
  }
  void copy_or_clear(const T* sums, T* out) const {
    if (sums) {
      std::copy_n(sums, d * d + d, out);
    } else {
      std::fill_n(out, d * d + d, T(0));
    }
  }
  // The head's last K - 1 values in a state
  template <typename U_>
  Rows<U_> last_of(U_* values) const {
    const int64_t width = p.num_heads * d;
    return {values ? values + seq * (conv.width - 1) * width + channel : nullptr, width};
  }

  void store_state() const {
    std::copy_n(S, d * d + d, state_of(p.final_sums));
    if (conv.width) conv.store_last(in_v(0), len, last_of(p.final_values));
    if (head == 0) p.final_count[seq] = before + len;
  }

  template <typename U_>
  Rows<U_> at(const Rows<U_>& rows, int64_t t0) const {
    return {rows.row(start + t0) + channel, rows.stride};
  }
  Rows<const T> in(const T* buffer) const { return {buffer, d}; }
  Rows<const T> in_v(int64_t t0) const { return at(p.v, t0); }

  // (cos, sin) of position t at the head's channel i; null without rotary
  const T* angles(int64_t t, int64_t i) const {
    return p.rotary ? p.rotary + (before + t) * p.num_heads * d + channel + i : nullptr;
  }

  // Asks for the cache line that a chunk from now will be needed. Heads are apart in memory, so that a row's
  // operands come from many places at once, too many for the processor to foresee. Beyond the tensor's end, or
  // where another worker takes over, nothing is lost.
  template <bool kWrite = false, typename R>
  RECGRELA_INLINE void fetch(const R& rows, int64_t row, int64_t col) {
    if (col * sizeof(T) % 64 == 0) __builtin_prefetch(rows.data + row * rows.stride + col, kWrite);
  }

  // phi(x) and R phi(x) of n rows from t0 on; without rotary both are the first
  void features(Rows<const T> x, int64_t t0, int64_t n, T* f, T*& r) const {
    if (p.rotary) {
      features_of<true>(at(x, t0), n, f, r, angles(t0, 0));
    } else {
      r = f;
      features_of<false>(at(x, t0), n, f, nullptr, nullptr);
    }
  }

  // By columns: the loop over rows has its pointers and constants in registers.
  template <bool kRotary>
  __attribute__((noinline)) void features_of(Rows<const T> x, int64_t n, T* f, T* r, const T* cs) const {
    const int64_t width = d, angle_stride = p.num_heads * d;
    for (int64_t i = 0; i < width; i += N) {
      for (int64_t t = 0; t < n; ++t) {
        fetch(x, t + ahead, i);
        const V y = phi<T, N>(load<T, N>(x.row(t) + i));
        store<T, N>(f + t * width + i, y);
        if constexpr (kRotary)
          store<T, N>(r + t * width + i, rotate<T, N, false>(y, load<T, N>(cs + t * angle_stride + i)));
      }
    }
  }

  // Makes fk and rk those of the n keys from t0 on.
  void find_keys(int64_t t0, int64_t n, bool again) {
    if (kept_keys) fk = fk0 + t0 * d, rk = p.rotary ? rk0 + t0 * d : fk;
    if (!kept_keys || !again) features(p.k, t0, n, fk, rk);
  }

  // S and z move on by the n rows from t0 on
  void add_keys(int64_t t0, int64_t n) {
    find_keys(t0, n, false);
    for (int64_t t = t0; t < t0 + n; ++t) fetch(p.v, start + t + ahead, channel);
    sweep<T, N, true, false, false>(n, d, in(rk), in_v(t0), {}, nullptr, S);
    for (int64_t i = 0; i < d; i += N) {
      V acc = load<T, N>(z + i);
      for (int64_t t = 0; t < n; ++t) acc += load<T, N>(fk + t * d + i);
      store<T, N>(z + i, acc);
    }
  }

  // S and z of the whole sequence
  void sum_keys() {
    for (int64_t t0 = 0; t0 < len; t0 += kChunk) {
      add_keys(t0, std::min(kChunk, len - t0));
    }
  }

  // num and z_inv of n rows; the causal form moves S and z on
  void attend(int64_t t0, int64_t n) {
    features(p.q, t0, n, fq, rq);
    if (p.causal) {
      features(p.k, t0, n, fk, rk);
      sweep<T, N, true, true, false>(n, d, in(rk), in_v(t0), in(rq), num, S);
    } else {
      sweep<T, N, false, true, false>(n, d, {}, {}, in(rq), num, S);
    }
    if (p.causal) {
      normalize<true>(t0, n);
    } else {
      normalize<false>(t0, n);
    }
  }

  // z_inv of n rows from fq and z, which the causal form moves on by fk
  template <bool kCausal>
  __attribute__((noinline)) void normalize(int64_t t0, int64_t n) const {
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
      z_inv[t] = T(1) / (sum<T, N>(dot) + p.eps * T(kCausal ? before + t0 + t + 1 : len));
    }
  }

  void forward() {
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
    if (p.final_sums) store_state();
  }

  // y of n rows. By columns: the loop over rows has its pointers and constants in registers.
  template <bool kGate>
  __attribute__((noinline)) void output(int64_t t0, int64_t n) const {
    const int64_t width = d;
    const Rows<const T> v = in_v(0), gate = kGate ? at(p.g, t0) : v;
    const Rows<T> y = at(p.y, t0);
    const bool convolves = conv.width > 0;
    for (int64_t i = 0; i < width; i += N) {
      const ConvTaps<T, N> taps(conv, i);
      for (int64_t t = 0; t < n; ++t) {
        fetch(v, t0 + t + ahead, i);
        if constexpr (kGate) fetch(gate, t + ahead, i);
        fetch<true>(y, t + ahead, i);
        V out = load<T, N>(num + t * width + i) * z_inv[t];
        if (convolves) {
          const V c = taps(v, t0 + t);
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

  // Through the gate and the sum: dg, dnum and the chunk's part of dp, which starts at d_conv.
  template <bool kGate>
  __attribute__((noinline)) void backward_gate(int64_t t0, int64_t n, T* d_conv) const {
    const int64_t width = d;
    const Rows<const T> v = in_v(0), dy = at(p.dy, t0), gate = kGate ? at(p.g, t0) : v;
    const Rows<T> dq = at(p.dq, t0), dk = at(p.dk, t0), dv = at(p.dv, t0), dg = kGate ? at(p.dg, t0) : dv;
    const bool convolves = conv.width > 0;
    for (int64_t i = 0; i < width; i += N) {
      const ConvTaps<T, N> taps(conv, i);
      for (int64_t t = 0; t < n; ++t) {
        fetch(dy, t + ahead, i);
        for (const Rows<T>& rows : {dq, dk, dv}) fetch<true>(rows, t + ahead, i);
        V a = load<T, N>(dy.row(t) + i);
        V o = load<T, N>(num + t * width + i) * z_inv[t];
        V c{}, sc{};
        if (convolves) {
          c = taps(v, t0 + t);
          sc = sigmoid<T, N>(c);
          o += c * sc;
        }
        if constexpr (kGate) {
          fetch(gate, t + ahead, i);
          fetch<true>(dg, t + ahead, i);
          const V g = load<T, N>(gate.row(t) + i), s = sigmoid<T, N>(g);
          store<T, N>(dg.row(t) + i, a * o * silu_grad<T, N>(g, s));
          a *= g * s;
        }
        store<T, N>(dnum + t * width + i, a * z_inv[t]);
        if (convolves) store<T, N>(d_conv + t * width + i, a * silu_grad<T, N>(c, sc));
      }
    }
  }

  // dx = phi'(x) (R^-1 drot + d_phi), where d_phi is the gradient that was not rotated; cs may be null
  RECGRELA_INLINE void store_input_grad(T* dx, const T* f, const T* drot, const T* cs, V d_phi) {
    V y = load<T, N>(drot);
    if (cs) y = rotate<T, N, true>(y, load<T, N>(cs));
    store<T, N>(dx, (y + d_phi) * phi_grad<T, N>(load<T, N>(f)));
  }

  // dq of n rows from drot; z is the running sum before the chunk (all of it, if bidirectional).
  // Replaces z_inv by dZ.
  __attribute__((noinline)) void backward_query(int64_t t0, int64_t n) const {
    const int64_t width = d, angle_stride = p.num_heads * d;
    const bool causal = p.causal;
    const T* cs = angles(t0, 0);
    const Rows<T> dq = at(p.dq, t0);
    for (int64_t t = 0; t < n; ++t, cs += cs ? angle_stride : 0) {
      const T *const q = fq + t * width, *const k = fk + t * width, *const dr = drot + t * width;
      V dot{};
      for (int64_t i = 0; i < width; i += N) dot += load<T, N>(rq + t * width + i) * load<T, N>(dr + i);
      const T d_den = z_inv[t] = -sum<T, N>(dot) * z_inv[t];
      for (int64_t i = 0; i < width; i += N) {
        V zi = load<T, N>(z + i);
        if (causal) store<T, N>(z + i, zi += load<T, N>(k + i));
        store_input_grad(dq.row(t) + i, q + i, dr + i, cs ? cs + i : nullptr, zi * d_den);
      }
    }
  }

  // dk of n rows from drot; the causal form moves dz on, from the last row to the first.
  __attribute__((noinline)) void backward_key(int64_t t0, int64_t n) const {
    const int64_t width = d, angle_stride = p.num_heads * d;
    const bool causal = p.causal;
    const T* const angles0 = angles(t0, 0);
    const Rows<T> dk = at(p.dk, t0);
    for (int64_t t = n - 1; t >= 0; --t) {
      const T* const cs = angles0 ? angles0 + t * angle_stride : nullptr;
      for (int64_t i = 0; i < width; i += N) {
        V dzi = load<T, N>(dz + i);
        if (causal) store<T, N>(dz + i, dzi += load<T, N>(fq + t * width + i) * z_inv[t]);
        store_input_grad(dk.row(t) + i, fk + t * width + i, drot + t * width + i, cs ? cs + i : nullptr, dzi);
      }
    }
  }

  void add_to_dv(int64_t t0, int64_t n, const T* x) const {
    const int64_t width = d;
    const Rows<T> dv = at(p.dv, t0);
    for (int64_t t = 0; t < n; ++t)
      for (int64_t i = 0; i < width; i += N)
        store<T, N>(dv.row(t) + i, load<T, N>(dv.row(t) + i) + load<T, N>(x + t * width + i));
  }

  void backward() {
    if (p.final_sums_grad) {
      std::copy_n(state_of(p.final_sums_grad), d * d + d, U);  // and dz
      transpose(U, Ut, d);
    } else {
      std::fill_n(U, 2 * d * d + d, T(0));  // and dz and Ut, which stand behind it
    }
    const Rows<const T> dlast = last_of(conv.width ? p.final_values_grad : nullptr);
    if (conv.width) conv.clear_history_grad();
    if (dlast.data && len == 0) conv.add_last_grad(dlast, 0, 0, 0, at(p.dv, 0));
    if (p.causal) {
      for (int64_t t0 = 0, c = 0; t0 < len; t0 += kChunk, ++c) {
        const int64_t n = std::min(kChunk, len - t0);
        std::copy_n(S, d * d + d, saved + c * (d * d + d));
        if (t0 + n == len) break;  // the state after the last chunk is not needed
        add_keys(t0, n);
      }
    } else {
      sum_keys();
      transpose(S, St, d);
    }

    const int64_t halo = std::max<int64_t>(conv.width - 1, 0);
    const Rows<T> dv = at(p.dv, 0);
    std::fill(dp + kChunk * d, dp + (kChunk + halo) * d, T(0));
    ahead = -kChunk;
    for (int64_t c = chunks_of(len) - 1; c >= 0; --c) {
      const int64_t t0 = c * kChunk, n = std::min(kChunk, len - t0);
      T* const d_conv = dp + (kChunk - n) * d;  // the halo, the rows after the chunk, stands right behind
      const T* const before = saved + c * (d * d + d);
      if (p.causal) {
        std::copy_n(before, d * d + d, S);
        transpose(S, St, d);
      }
      attend(t0, n);
      if (p.g.data) {
        backward_gate<true>(t0, n, d_conv);
      } else {
        backward_gate<false>(t0, n, d_conv);
      }
      if (conv.width) {
        conv_backward_block<T, N>(conv, in_v(0), t0, n, d_conv, dv);
        if (dlast.data) conv.add_last_grad(dlast, t0, n, len, dv);
        std::memmove(dp + kChunk * d, d_conv, halo * d * sizeof(T));  // they overlap when n < halo
      } else {
        for (int64_t t = 0; t < n; ++t) std::fill_n(dv.row(t0 + t), d, T(0));
      }
      if (p.causal) {
        sweep<T, N, true, true, false>(n, d, in_v(t0), in(rk), in(dnum), drot, St);
        std::copy_n(before + d * d, d, z);
        backward_query(t0, n);
        sweep<T, N, true, true, true>(n, d, in(rq), in(dnum), in(rk), num, U);
        add_to_dv(t0, n, num);
        sweep<T, N, true, true, true>(n, d, in(dnum), in(rq), in_v(t0), drot, Ut);
        backward_key(t0, n);
      } else {
        sweep<T, N, false, true, false>(n, d, {}, {}, in(dnum), drot, St);
        backward_query(t0, n);
        sweep<T, N, true, false, true>(n, d, in(rq), in(dnum), {}, nullptr, U);
        for (int64_t t = 0; t < n; ++t)
          for (int64_t i = 0; i < d; i += N)
            store<T, N>(dz + i, load<T, N>(dz + i) + load<T, N>(fq + t * d + i) * z_inv[t]);
      }
    }
    ahead = kChunk;
    if (p.initial_sums_grad) std::copy_n(U, d * d + d, state_of(p.initial_sums_grad));
    if (p.causal) return;
    transpose(U, Ut, d);
    for (int64_t t0 = 0; t0 < len; t0 += kChunk) {
      const int64_t n = std::min(kChunk, len - t0);
      find_keys(t0, n, true);
      sweep<T, N, false, true, false>(n, d, {}, {}, in(rk), num, U);
      add_to_dv(t0, n, num);
      sweep<T, N, false, true, false>(n, d, {}, {}, in_v(t0), drot, Ut);
      backward_key(t0, n);
    }
  }
};

template <typename T>
static int64_t gated_rela_scratch(const GatedRelaParams<T>& p, bool backward) {
  return RelaHead<T, 2>::scratch(p, backward);
}

template <typename T, bool kBackward>
static void gated_rela_worker(const GatedRelaParams<T>& p, T* scratch) {
  with_lanes<T>(p.head_dim, [&](auto lanes) {
    constexpr int N = decltype(lanes)::value;
    if constexpr (N > 1) {  // head_dim is even
      RelaHead<T, N> head(p, scratch, kBackward);
      const int64_t width = p.conv_width, hidden = p.num_heads * p.head_dim;
      const int64_t heads = p.heads_per_item, parts = p.num_heads / heads;
      for (int64_t item; (item = p.next->fetch_add(1)) < p.num_items();) {
        const int64_t group = item / parts, first = item % parts * heads;
        for (int64_t h = first; h < first + heads; ++h) {
          const int64_t channel = h * p.head_dim;
          if (width) head.conv.load(p.conv_weight + channel * width, p.conv_bias + channel);
          for (int64_t seq = p.groups.begin(group); seq < p.groups.end(group); ++seq) {
            head.begin(seq, h);
            if constexpr (kBackward) {
              head.backward();
            } else {
              head.forward();
            }
          }
          if (kBackward && width)
            head.conv.store_grads(p.dweight + (group * hidden + channel) * width, p.dbias + group * hidden + channel);
        }
      }
    }
  });
}
