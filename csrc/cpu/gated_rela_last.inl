// gated_rela_last: one sequence at a time, with one pass over its keys and values. With a single query, the weights
// w_j = (R phi(q)) . (R_j phi(k_j)) are dot products, and no state of keys by values is needed:
//   o = sum_j w_j v_j / Z,  Z = phi(q) . sum_j phi(k_j) + n eps,  y = (o + SiLU(conv(v))) SiLU(g)
// and with u = a / Z and d_Z = -(a . o) / Z, where a is the gradient of o:
//   d_v_j = w_j u,  d_phi(k_j) = (u . v_j) R_j^-1 R phi(q) + d_Z phi(q)
//   d_phi(q) = R^-1 sum_j (u . v_j) R_j phi(k_j) + d_Z sum_j phi(k_j)

// Some heads of one sequence, and the buffers of a thread. All buffers are [D]; only the channels begin .. end of the
// heads are used.
template <typename T, int N>
struct LastHeads {
  using V = Vec<T, N>;
  static constexpr int64_t kBuffers = 12;
  const GatedRelaLastParams<T>& p;
  const int64_t d;
  T *fq, *rq;                           // phi(q), R phi(q)
  T *values, *keys;                     // sums of w_j v_j and of phi(k_j)
  T *shortcut, *slope;                  // SiLU of the convolution, and the derivative
  T *u, *d_keys, *d_conv, *d_rq;        // backward: u, d_Z phi(q), gradients of the convolution and of R phi(q)
  T *fk, *rotated;                      // backward, one head of a row: phi(k), R^-1 R phi(q)
  int64_t begin = 0, end = 0;           // channels
  int64_t seq = 0, start = 0, len = 0;  // the current sequence
  int64_t wanted = 0;

  LastHeads(const GatedRelaLastParams<T>& p, T* arena) : p(p), d(p.head_dim) {
    for (T** buffer : {&fq, &rq, &values, &keys, &shortcut, &slope, &u, &d_keys, &d_conv, &d_rq, &fk, &rotated})
      *buffer = std::exchange(arena, arena + p.width());
  }
  static int64_t scratch(const GatedRelaLastParams<T>& p, bool) { return kBuffers * p.width(); }

  template <typename F>
  RECGRELA_INLINE void for_each_vector(int64_t from, int64_t to, F f) {
    for (int64_t i = from; i < to; i += N) f(i);
  }
  // Rotates channels i .. i + N by the angles of a position; kInverse rotates back.
  template <bool kInverse>
  RECGRELA_INLINE V rotate_at(const T* angles, V x, int64_t i) {
    return angles ? rotate<T, N, kInverse>(x, load<T, N>(angles + i)) : x;
  }
  const T* angles(int64_t row) const { return p.rotary ? p.rotary + (row - start) * p.width() : nullptr; }
  RECGRELA_INLINE void add(T* to, V x) { store<T, N>(to, load<T, N>(to) + x); }

  // Moves to a sequence. Returns whether it has rows.
  bool move(int64_t sequence) {
    seq = sequence, start = p.cu_seqlens[seq], len = p.cu_seqlens[seq + 1] - start;
    if (len == 0) return false;
    wanted = p.wanted[seq];
    const T* const cs = angles(wanted);
    for_each_vector(begin, end, [&](int64_t i) {
      const V f = phi<T, N>(load<T, N>(p.q.row(seq) + i));
      store<T, N>(fq + i, f);
      store<T, N>(rq + i, rotate_at<false>(cs, f, i));
    });
    return true;
  }

  // Calls f(k, row of v) for the rows that the convolution multiplies by weight k.
  template <typename F>
  void for_each_value(F f) const {
    for (int64_t k = 0; k < p.kernel_size; ++k) {
      const int64_t row = wanted - (p.kernel_size - 1) + k;
      if (row >= start) f(k, row);
    }
  }
  void convolve() {
    if (p.kernel_size == 0) {
      std::fill(shortcut + begin, shortcut + end, T(0));
      return;
    }
    std::copy(p.conv_bias + begin, p.conv_bias + end, shortcut + begin);
    for_each_value([&](int64_t k, int64_t row) {
      const T* const v = p.v.row(row);
      for (int64_t i = begin; i < end; ++i) shortcut[i] += p.conv_weight[i * p.kernel_size + k] * v[i];
    });
    for_each_vector(begin, end, [&](int64_t i) {
      const V c = load<T, N>(shortcut + i), s = sigmoid<T, N>(c);
      store<T, N>(slope + i, silu_grad<T, N>(c, s));
      store<T, N>(shortcut + i, c * s);
    });
  }

  // 1 / Z of the head that begins at a channel.
  T inverse_denominator(int64_t channel) const {
    V dot{};
    for (int64_t i = channel; i < channel + d; i += N) dot += load<T, N>(fq + i) * load<T, N>(keys + i);
    return T(1) / (sum<T, N>(dot) + p.eps * static_cast<T>(len));
  }
  T* sums() const { return p.sums + seq * 2 * p.width(); }

  void forward(int64_t sequence) {
    const bool has_rows = move(sequence);
    std::fill(values + begin, values + end, T(0));
    std::fill(keys + begin, keys + end, T(0));
    for (int64_t row = start; row < start + len; ++row) add_row(p.k.row(row), p.v.row(row), angles(row));
    std::copy(values + begin, values + end, sums() + begin);
    std::copy(keys + begin, keys + end, sums() + p.width() + begin);
    T* const y = p.y.row(seq);
    if (!has_rows) {
      std::fill(y + begin, y + end, T(0));
      return;
    }
    convolve();
    for (int64_t head = begin; head < end; head += d) {
      const T inverse = inverse_denominator(head);
      for_each_vector(head, head + d, [&](int64_t i) {
        V out = load<T, N>(values + i) * inverse + load<T, N>(shortcut + i);
        if (p.g.data) {
          const V g = load<T, N>(p.g.row(seq) + i);
          out *= g * sigmoid<T, N>(g);
        }
        store<T, N>(y + i, out);
      });
    }
  }
  void add_row(const T* k, const T* v, const T* cs) {
    for (int64_t head = begin; head < end; head += d) {
      V dot{};
      for_each_vector(head, head + d, [&](int64_t i) {
        const V f = phi<T, N>(load<T, N>(k + i));
        dot += f * rotate_at<true>(cs, load<T, N>(rq + i), i);
        add(keys + i, f);
      });
      const T weight = sum<T, N>(dot);
      for_each_vector(head, head + d, [&](int64_t i) { add(values + i, weight * load<T, N>(v + i)); });
    }
  }

  void backward(int64_t sequence, int64_t group) {
    if (!move(sequence)) {
      for (const RowMatrix<T>& rows : {p.d_q, p.d_g})
        if (rows.data) std::fill(rows.row(seq) + begin, rows.row(seq) + end, T(0));
      return;
    }
    std::copy(sums() + p.width() + begin, sums() + p.width() + end, keys + begin);
    convolve();
    for (int64_t head = begin; head < end; head += d) backward_wanted(head);
    std::fill(d_rq + begin, d_rq + end, T(0));
    for (int64_t row = start; row < start + len; ++row) backward_row(row);
    backward_convolution(group);
    const T* const cs = angles(wanted);
    for_each_vector(begin, end, [&](int64_t i) {  // `values` has d_Z sum phi(k)
      const V d_phi = rotate_at<true>(cs, load<T, N>(d_rq + i), i) + load<T, N>(values + i);
      store<T, N>(p.d_q.row(seq) + i, d_phi * phi_grad<T, N>(load<T, N>(fq + i)));
    });
  }
  // Stores d_g of a head, and u, d_keys, d_conv and `values` for its rows.
  void backward_wanted(int64_t head) {
    const T inverse = inverse_denominator(head);
    V dot{};
    for_each_vector(head, head + d, [&](int64_t i) {
      const V o = load<T, N>(sums() + i) * inverse;
      V a = load<T, N>(p.d_y.row(seq) + i);
      if (p.g.data) {
        const V g = load<T, N>(p.g.row(seq) + i), s = sigmoid<T, N>(g);
        store<T, N>(p.d_g.row(seq) + i, a * (o + load<T, N>(shortcut + i)) * silu_grad<T, N>(g, s));
        a *= g * s;
      }
      if (p.kernel_size) store<T, N>(d_conv + i, a * load<T, N>(slope + i));
      store<T, N>(u + i, a * inverse);
      dot += a * o;
    });
    const T d_denominator = -sum<T, N>(dot) * inverse;
    for_each_vector(head, head + d, [&](int64_t i) {
      store<T, N>(d_keys + i, d_denominator * load<T, N>(fq + i));
      store<T, N>(values + i, d_denominator * load<T, N>(keys + i));
    });
  }
  void backward_row(int64_t row) {
    const T *const k = p.k.row(row), *const v = p.v.row(row), *const cs = angles(row);
    T *const d_k = p.d_k.row(row), *const d_v = p.d_v.row(row);
    for (int64_t head = begin; head < end; head += d) {
      V dot{}, d_dot{};
      for_each_vector(head, head + d, [&](int64_t i) {
        const V f = phi<T, N>(load<T, N>(k + i)), r = rotate_at<true>(cs, load<T, N>(rq + i), i);
        dot += f * r, d_dot += load<T, N>(u + i) * load<T, N>(v + i);
        store<T, N>(fk + i, f);
        store<T, N>(rotated + i, r);
      });
      const T weight = sum<T, N>(dot), d_weight = sum<T, N>(d_dot);
      for_each_vector(head, head + d, [&](int64_t i) {
        const V f = load<T, N>(fk + i);
        store<T, N>(d_v + i, weight * load<T, N>(u + i));
        store<T, N>(d_k + i, (d_weight * load<T, N>(rotated + i) + load<T, N>(d_keys + i)) * phi_grad<T, N>(f));
        add(d_rq + i, d_weight * rotate_at<false>(cs, f, i));
      });
    }
  }
  // Adds to d_v and to the group's partial gradients of the convolution.
  void backward_convolution(int64_t group) {
    if (p.kernel_size == 0) return;
    T* const d_weight = p.d_conv_weight + group * p.width() * p.kernel_size;
    T* const d_bias = p.d_conv_bias + group * p.width();
    for_each_value([&](int64_t k, int64_t row) {
      const T* const v = p.v.row(row);
      T* const d_v = p.d_v.row(row);
      for (int64_t i = begin; i < end; ++i) {
        d_v[i] += d_conv[i] * p.conv_weight[i * p.kernel_size + k];
        d_weight[i * p.kernel_size + k] += d_conv[i] * v[i];
      }
    });
    for (int64_t i = begin; i < end; ++i) d_bias[i] += d_conv[i];
  }
};

template <typename T, bool kBackward>
static void gated_rela_last_worker(const GatedRelaLastParams<T>& p, T* scratch) {
  with_lanes<T>(p.head_dim, [&](auto lanes) {
    constexpr int N = decltype(lanes)::value;
    if constexpr (N > 1) {  // head_dim is even
      LastHeads<T, N> heads(p, scratch);
      const int64_t channels = p.heads_per_item * p.head_dim, items_per_group = p.num_heads / p.heads_per_item;
      for (int64_t item; p.queue->take(item);) {
        const int64_t group = item / items_per_group;
        heads.begin = item % items_per_group * channels, heads.end = heads.begin + channels;
        for (int64_t seq = p.groups.begin(group); seq < p.groups.end(group); ++seq) {
          if constexpr (kBackward) {
            heads.backward(seq, group);
          } else {
            heads.forward(seq);
          }
        }
      }
    }
  });
}

template <typename T>
static constexpr GatedRelaLastKernels<T> kKernels{LastHeads<T, 2>::scratch, gated_rela_last_worker<T, false>,
                                                  gated_rela_last_worker<T, true>};
