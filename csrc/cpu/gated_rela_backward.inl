// The backward of RelaHead.

// Propagates d_y through the gate and the sum: computes d_g, d_num, and d_conv, the chunk's rows of d_p.
template <typename T, int N>
template <bool kGate>
__attribute__((noinline)) void RelaHead<T, N>::backward_gate(int64_t t0, int64_t n, T* d_conv) const {
  const int64_t width = d;
  const RowMatrix<const T> v = in_v(0), d_y = at(p.d_y, t0), gate = kGate ? at(p.g, t0) : v;
  const RowMatrix<T> d_q = at(p.d_q, t0), d_k = at(p.d_k, t0), d_v = at(p.d_v, t0), d_g = kGate ? at(p.d_g, t0) : d_v;
  const bool convolves = conv.kernel_size > 0;
  for (int64_t i = 0; i < width; i += N) {
    const ConvColumns<T, N> columns(conv, i);
    for (int64_t t = 0; t < n; ++t) {
      prefetch(d_y, t + prefetch_rows, i);
      for (const RowMatrix<T>& rows : {d_q, d_k, d_v}) prefetch<true>(rows, t + prefetch_rows, i);
      V a = load<T, N>(d_y.row(t) + i);
      V o = load<T, N>(num + t * width + i) * z_inv[t];
      V c{}, sc{};
      if (convolves) {
        c = columns(v, t0 + t);
        sc = sigmoid<T, N>(c);
        o += c * sc;
      }
      if constexpr (kGate) {
        prefetch(gate, t + prefetch_rows, i);
        prefetch<true>(d_g, t + prefetch_rows, i);
        const V g = load<T, N>(gate.row(t) + i), s = sigmoid<T, N>(g);
        store<T, N>(d_g.row(t) + i, a * o * silu_grad<T, N>(g, s));
        a *= g * s;
      }
      store<T, N>(d_num + t * width + i, a * z_inv[t]);
      if (convolves) store<T, N>(d_conv + t * width + i, a * silu_grad<T, N>(c, sc));
    }
  }
}

// Stores d_x = phi'(x) (R^-1 d_rot + d_phi), where d_phi is the gradient of phi(x) from z; cs may be null.
template <typename T, int N>
RECGRELA_INLINE void store_input_gradient(T* d_x, const T* f, const T* d_rot, const T* cs, Vec<T, N> d_phi) {
  Vec<T, N> y = load<T, N>(d_rot);
  if (cs) y = rotate<T, N, true>(y, load<T, N>(cs));
  store<T, N>(d_x, (y + d_phi) * phi_grad<T, N>(load<T, N>(f)));
}

// Computes d_q of n rows from d_rot and replaces z_inv by d_Z. On entry z is the sum over the rows before the chunk
// (causal form) or over the whole sequence.
template <typename T, int N>
__attribute__((noinline)) void RelaHead<T, N>::backward_query(int64_t t0, int64_t n) const {
  const int64_t width = d, angle_stride = p.num_heads * d;
  const bool causal = p.causal;
  const T* cs = angles(t0, 0);
  const RowMatrix<T> d_q = at(p.d_q, t0);
  for (int64_t t = 0; t < n; ++t, cs += cs ? angle_stride : 0) {
    const T *const q = fq + t * width, *const k = fk + t * width, *const dr = d_rot + t * width;
    V dot{};
    for (int64_t i = 0; i < width; i += N) dot += load<T, N>(rq + t * width + i) * load<T, N>(dr + i);
    const T d_Z = z_inv[t] = -sum<T, N>(dot) * z_inv[t];
    for (int64_t i = 0; i < width; i += N) {
      V zi = load<T, N>(z + i);
      if (causal) store<T, N>(z + i, zi += load<T, N>(k + i));
      store_input_gradient<T, N>(d_q.row(t) + i, q + i, dr + i, cs ? cs + i : nullptr, zi * d_Z);
    }
  }
}

// Computes d_k of n rows from d_rot. The causal form adds each row to d_z first, from the last row to the first.
template <typename T, int N>
__attribute__((noinline)) void RelaHead<T, N>::backward_key(int64_t t0, int64_t n) const {
  const int64_t width = d, angle_stride = p.num_heads * d;
  const bool causal = p.causal;
  const T* const angles0 = angles(t0, 0);
  const RowMatrix<T> d_k = at(p.d_k, t0);
  for (int64_t t = n - 1; t >= 0; --t) {
    const T* const cs = angles0 ? angles0 + t * angle_stride : nullptr;
    for (int64_t i = 0; i < width; i += N) {
      V d_zi = load<T, N>(d_z + i);
      if (causal) store<T, N>(d_z + i, d_zi += load<T, N>(fq + t * width + i) * z_inv[t]);
      store_input_gradient<T, N>(d_k.row(t) + i, fk + t * width + i, d_rot + t * width + i, cs ? cs + i : nullptr,
                                 d_zi);
    }
  }
}

template <typename T, int N>
void RelaHead<T, N>::add_to_d_v(int64_t t0, int64_t n, const T* x) const {
  const int64_t width = d;
  const RowMatrix<T> d_v = at(p.d_v, t0);
  for (int64_t t = 0; t < n; ++t)
    for (int64_t i = 0; i < width; i += N)
      store<T, N>(d_v.row(t) + i, load<T, N>(d_v.row(t) + i) + load<T, N>(x + t * width + i));
}

template <typename T, int N>
void RelaHead<T, N>::backward() {
  if (p.d_final_kv_state) {
    std::copy_n(kv_state_of(p.d_final_kv_state), d * d + d, U);  // and d_z
    transpose(U, Ut, d);
  } else {
    std::fill_n(U, 2 * d * d + d, T(0));  // and d_z and Ut
  }
  const RowMatrix<const T> d_final = history_of(conv.kernel_size ? p.d_final_history : nullptr);
  if (conv.kernel_size) conv.clear_d_history();
  if (d_final.data && len == 0) conv.add_d_final_history(d_final, 0, 0, 0, at(p.d_v, 0));
  if (p.causal) {
    for (int64_t t0 = 0, c = 0; t0 < len; t0 += kChunk, ++c) {
      const int64_t n = std::min(kChunk, len - t0);
      std::copy_n(S, d * d + d, checkpoints + c * (d * d + d));
      if (t0 + n == len) break;  // no checkpoint follows the last chunk
      add_keys(t0, n);
    }
  } else {
    sum_keys();
    transpose(S, St, d);
  }

  const int64_t history = RelaHead::history(p);
  const RowMatrix<T> d_v = at(p.d_v, 0);
  std::fill(d_p + kChunk * d, d_p + (kChunk + history) * d, T(0));
  prefetch_rows = -kChunk;
  for (int64_t c = ceil_div(len, kChunk) - 1; c >= 0; --c) {
    const int64_t t0 = c * kChunk, n = std::min(kChunk, len - t0);
    T* const d_conv = d_p + (kChunk - n) * d;  // the next chunk's rows follow
    const T* const checkpoint = checkpoints + c * (d * d + d);
    if (p.causal) {
      std::copy_n(checkpoint, d * d + d, S);
      transpose(S, St, d);
    }
    attend(t0, n);
    if (p.g.data) {
      backward_gate<true>(t0, n, d_conv);
    } else {
      backward_gate<false>(t0, n, d_conv);
    }
    if (conv.kernel_size) {
      conv_backward_block<T, N>(conv, in_v(0), t0, n, d_conv, d_v);
      if (d_final.data) conv.add_d_final_history(d_final, t0, n, len, d_v);
      std::memmove(d_p + kChunk * d, d_conv, history * d * sizeof(T));  // the rows overlap if n < K - 1
    } else {
      for (int64_t t = 0; t < n; ++t) std::fill_n(d_v.row(t0 + t), d, T(0));
    }
    if (p.causal) {
      sweep<T, N, true, true, false>(n, d, in_v(t0), in(rk), in(d_num), d_rot, St);
      std::copy_n(checkpoint + d * d, d, z);
      backward_query(t0, n);
      sweep<T, N, true, true, true>(n, d, in(rq), in(d_num), in(rk), num, U);
      add_to_d_v(t0, n, num);
      sweep<T, N, true, true, true>(n, d, in(d_num), in(rq), in_v(t0), d_rot, Ut);
      backward_key(t0, n);
    } else {
      sweep<T, N, false, true, false>(n, d, {}, {}, in(d_num), d_rot, St);
      backward_query(t0, n);
      sweep<T, N, true, false, true>(n, d, in(rq), in(d_num), {}, nullptr, U);
      for (int64_t t = 0; t < n; ++t)
        for (int64_t i = 0; i < d; i += N)
          store<T, N>(d_z + i, load<T, N>(d_z + i) + load<T, N>(fq + t * d + i) * z_inv[t]);
    }
  }
  prefetch_rows = kChunk;
  if (p.d_initial_kv_state) std::copy_n(U, d * d + d, kv_state_of(p.d_initial_kv_state));
  if (p.causal) return;
  transpose(U, Ut, d);
  for (int64_t t0 = 0; t0 < len; t0 += kChunk) {
    const int64_t n = std::min(kChunk, len - t0);
    compute_keys(t0, n, true);
    sweep<T, N, false, true, false>(n, d, {}, {}, in(rk), num, U);
    add_to_d_v(t0, n, num);
    sweep<T, N, false, true, false>(n, d, {}, {}, in_v(t0), d_rot, Ut);
    backward_key(t0, n);
  }
}
