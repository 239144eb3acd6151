// selective_scan: one sequence and one part of the channels at a time, in chunks of kCheckpointRows rows. The lanes are
// channels; a few states at a time run through the rows of a chunk, whose operands stay in the L1 cache:
//   h = exp(d A) h + (d u) B;   y += C h
// The backward makes a chunk's states again from the one kept before it, and then goes through its rows in reverse with
// the gradient of the state:
//   dh = dy C + exp(d A) dh' of the row behind;   dC += dy h;   dB += dh d u;   d(d u) += dh B
//   e = dh exp(d A) h' of the row before;         dA += e d;    d(d) += e A
// dB and dC are sums over the channels: lane by lane first, across the lanes once a chunk. Lanes beyond the last
// channel hold zeros, which add nothing.

template <typename T, int N>
struct SelectiveScan {
  using V = Vec<T, N>;
  static constexpr int64_t kRows = kCheckpointRows;
  static constexpr int kUnroll = 2;
  static constexpr T kLog2E = T(1.44269504088896340736), kLn2 = T(0.69314718055994530942);

  const SelectiveScanParams<T>& p;
  const int64_t num_states;
  // Of the part: [blocks, states, N], where a block is N channels.
  T* A;      // times log2(e)
  T* state;  // in the backward the gradient of the state behind the rows at work
  T* dA;
  T *dD, *dbias;  // [blocks, N]
  // Of the block and chunk at work: [kRows, N] but where said.
  T *step, *driven, *out;  // d, d u and y
  T *dout, *ddriven, *de;  // gradients of y and of d u; sum of e A log2(e)
  T *decay, *h;            // exp(d A) [kUnroll, kRows, N], states [kUnroll, kRows + 1, N]
  T* before;               // [states, N], before the chunk
  T *dB, *dC;              // [states, kRows, N]

  // the part, sequence and chunk at work
  int64_t part = 0, first = 0, blocks = 0, seq = 0, row = 0, rows = 0;

  SelectiveScan(const SelectiveScanParams<T>& p, T* arena, bool backward) : p(p), num_states(p.num_states) {
    auto take = [&](int64_t n) { return std::exchange(arena, arena + n * N); };
    const int64_t most = blocks_of(p.part_channels);
    A = take(most * num_states), state = take(most * num_states);
    for (T** x : {&step, &driven, &out}) *x = take(kRows);
    if (!backward) return;
    dA = take(most * num_states), dD = take(most), dbias = take(most);
    for (T** x : {&dout, &ddriven, &de}) *x = take(kRows);
    decay = take(kUnroll * kRows), h = take(kUnroll * (kRows + 1)), before = take(num_states);
    dB = take(num_states * kRows), dC = take(num_states * kRows);
  }

  static int64_t blocks_of(int64_t channels) { return (channels + N - 1) / N; }

  static int64_t scratch(const SelectiveScanParams<T>& p, bool backward) {
    const int64_t most = blocks_of(p.part_channels), n = p.num_states;
    int64_t vectors = 2 * most * n + 3 * kRows;
    if (backward) vectors += most * (n + 2) + 3 * kRows + kUnroll * (2 * kRows + 1) + n + 2 * n * kRows;
    return vectors * N;
  }

  // The first channel of a block, and how many of its lanes are channels.
  int64_t channel(int64_t block) const { return first + block * N; }
  int64_t count(int64_t block) const { return std::min<int64_t>(N, p.channels - channel(block)); }
  V get(const T* x, int64_t block) const { return load_some<T, N>(x + channel(block), count(block)); }
  void put(T* x, int64_t block, V v) const { store_some<T, N>(x + channel(block), v, count(block)); }
  T* at(T* x, int64_t block) const { return x + block * num_states * N; }

  // A block of [channels, states] with the channels in the lanes, and back; from null: zeros.
  void read(const T* from, int64_t block, T* to) const {
    std::fill(to, to + num_states * N, T(0));
    if (!from) return;
    from += channel(block) * num_states;
    for (int64_t c = 0; c < count(block); ++c)
      for (int64_t s = 0; s < num_states; ++s) to[s * N + c] = from[c * num_states + s];
  }
  void write(const T* from, int64_t block, T* to) const {
    to += channel(block) * num_states;
    for (int64_t c = 0; c < count(block); ++c)
      for (int64_t s = 0; s < num_states; ++s) to[c * num_states + s] = from[s * N + c];
  }
  // Of a [B, channels, states] array
  template <typename U>
  U* of_sequence(U* x, int64_t number) const {
    return x ? x + number * p.channels * num_states : nullptr;
  }

  void begin_part(int64_t number) {
    part = number, first = part * p.part_channels;
    blocks = blocks_of(std::min(p.part_channels, p.channels - first));
    for (int64_t b = 0; b < blocks; ++b) read(p.A, b, at(A, b));
    for (int64_t i = 0; i < blocks * num_states * N; ++i) A[i] *= kLog2E;
  }

  void begin_chunk(int64_t chunk) {
    row = p.cu_seqlens[seq] + chunk * kRows;
    rows = std::min(kRows, p.cu_seqlens[seq + 1] - row);
  }
  int64_t num_chunks() const { return (p.cu_seqlens[seq + 1] - p.cu_seqlens[seq] + kRows - 1) / kRows; }
  int64_t checkpoint(int64_t chunk) const { return p.cu_seqlens[seq] / kRows + seq + chunk; }

  V shifted_delta(int64_t r, int64_t block) const {
    const V delta = get(p.delta.row(row + r), block);
    return p.delta_bias ? delta + get(p.delta_bias, block) : delta;
  }

  void find_steps(int64_t block) const {
    for (int64_t r = 0; r < rows; ++r) {
      V d = shifted_delta(r, block);
      if (p.softplus) d = softplus<T, N>(d);
      store<T, N>(step + r * N, d);
      store<T, N>(driven + r * N, d * get(p.u.row(row + r), block));
      store<T, N>(out + r * N, V{});
    }
  }

  // The K states from `s` on through the rows; keeps what the backward wants of each row.
  template <int K, bool kOut, bool kKeep>
  void advance(const T* A_block, T* states, int64_t s) const {
    V a[K], x[K];
    for (int k = 0; k < K; ++k) {
      a[k] = load<T, N>(A_block + (s + k) * N), x[k] = load<T, N>(states + (s + k) * N);
      if constexpr (kKeep) store<T, N>(h + k * (kRows + 1) * N, x[k]);
    }
    for (int64_t r = 0; r < rows; ++r) {
      const V d = load<T, N>(step + r * N), in = load<T, N>(driven + r * N);
      const T *const b = p.B.row(row + r) + s, *const c = p.C.row(row + r) + s;
      V y = kOut ? load<T, N>(out + r * N) : V{};
      for (int k = 0; k < K; ++k) {
        const V e = exp2<T, N>(d * a[k]);
        x[k] = e * x[k] + in * b[k];
        if constexpr (kOut) y += x[k] * c[k];
        if constexpr (kKeep) {
          store<T, N>(decay + (k * kRows + r) * N, e);
          store<T, N>(h + (k * (kRows + 1) + r + 1) * N, x[k]);
        }
      }
      if constexpr (kOut) store<T, N>(out + r * N, y);
    }
    if constexpr (!kKeep)
      for (int k = 0; k < K; ++k) store<T, N>(states + (s + k) * N, x[k]);
  }

  // Calls f(std::integral_constant<int, K>, s) for all states, kUnroll of them at a time and then one by one.
  template <typename F>
  void for_states(F f) const {
    int64_t s = 0;
    for (; s + kUnroll <= num_states; s += kUnroll) f(std::integral_constant<int, kUnroll>{}, s);
    for (; s < num_states; ++s) f(std::integral_constant<int, 1>{}, s);
  }

  V skip(int64_t r, int64_t block) const {
    const V y = load<T, N>(out + r * N);
    return p.D ? y + get(p.D, block) * get(p.u.row(row + r), block) : y;
  }

  void forward(int64_t sequence) {
    seq = sequence;
    for (int64_t b = 0; b < blocks; ++b) read(of_sequence(p.initial_state, seq), b, at(state, b));
    for (int64_t chunk = 0; chunk < num_chunks(); ++chunk) {
      begin_chunk(chunk);
      for (int64_t b = 0; b < blocks; ++b) {
        if (p.kept) write(at(state, b), b, of_sequence(p.kept, checkpoint(chunk)));
        find_steps(b);
        for_states([&](auto k, int64_t s) { advance<decltype(k)::value, true, false>(at(A, b), at(state, b), s); });
        for (int64_t r = 0; r < rows; ++r) {
          V y = skip(r, b);
          if (p.z.data) {
            const V z = get(p.z.row(row + r), b);
            y *= z * sigmoid<T, N>(z);
          }
          put(p.y.row(row + r), b, y);
        }
      }
    }
    if (p.final_state)
      for (int64_t b = 0; b < blocks; ++b) write(at(state, b), b, of_sequence(p.final_state, seq));
    if (p.kept) clear_unused();
  }

  // The checkpoints between those of this sequence and of the next one.
  void clear_unused() const {
    const int64_t end = p.cu_seqlens[seq + 1] / kRows + seq + 1;
    const int64_t channels = std::min(p.part_channels, p.channels - first);
    for (int64_t i = checkpoint(num_chunks()); i < end; ++i)
      std::fill_n(of_sequence(p.kept, i) + first * num_states, channels * num_states, T(0));
  }

  void begin_gradients() const {
    std::fill(dA, dA + blocks * num_states * N, T(0));
    std::fill(dD, dD + blocks * N, T(0));
    std::fill(dbias, dbias + blocks * N, T(0));
  }

  void store_gradients(int64_t group) const {
    for (int64_t b = 0; b < blocks; ++b) {
      write(at(dA, b), b, p.dA + group * p.channels * num_states);
      if (p.dD) put(p.dD + group * p.channels, b, load<T, N>(dD + b * N));
      if (p.ddelta_bias) put(p.ddelta_bias + group * p.channels, b, load<T, N>(dbias + b * N));
    }
  }

  // Through the gate: the gradient of y before it.
  void find_output_gradients(int64_t block) const {
    for (int64_t r = 0; r < rows; ++r) {
      V g = get(p.dy.row(row + r), block);
      if (p.z.data) {
        const V z = get(p.z.row(row + r), block);
        g *= z * sigmoid<T, N>(z);
      }
      store<T, N>(dout + r * N, g);
      store<T, N>(ddriven + r * N, V{});
      store<T, N>(de + r * N, V{});
    }
  }

  template <int K>
  void retreat(int64_t block, int64_t s) const {
    V a[K], g[K], da[K];
    for (int k = 0; k < K; ++k) {
      a[k] = load<T, N>(at(A, block) + (s + k) * N), g[k] = load<T, N>(at(state, block) + (s + k) * N);
      da[k] = V{};
    }
    for (int64_t r = rows - 1; r >= 0; --r) {
      const V d = load<T, N>(step + r * N), in = load<T, N>(driven + r * N), dy = load<T, N>(dout + r * N);
      const T *const b = p.B.row(row + r) + s, *const c = p.C.row(row + r) + s;
      V din = load<T, N>(ddriven + r * N), de_r = load<T, N>(de + r * N);
      for (int k = 0; k < K; ++k) {
        T *const db = dB + ((s + k) * kRows + r) * N, *const dc = dC + ((s + k) * kRows + r) * N;
        const T* const x = h + (k * (kRows + 1) + r) * N;
        const V dx = dy * c[k] + g[k];
        store<T, N>(dc, load<T, N>(dc) + dy * load<T, N>(x + N));
        store<T, N>(db, load<T, N>(db) + dx * in);
        din += dx * b[k];
        g[k] = dx * load<T, N>(decay + (k * kRows + r) * N);
        const V e = g[k] * load<T, N>(x);
        de_r += e * a[k];
        da[k] += e * d;
      }
      store<T, N>(ddriven + r * N, din);
      store<T, N>(de + r * N, de_r);
    }
    for (int k = 0; k < K; ++k) {
      T* const sum = at(dA, block) + (s + k) * N;
      store<T, N>(sum, load<T, N>(sum) + da[k]);
      store<T, N>(at(state, block) + (s + k) * N, g[k]);
    }
  }

  void store_rows(int64_t block) const {
    V dD_sum{}, dbias_sum{};
    for (int64_t r = 0; r < rows; ++r) {
      const V u = get(p.u.row(row + r), block), g = load<T, N>(dout + r * N), din = load<T, N>(ddriven + r * N);
      const V du = din * load<T, N>(step + r * N);
      put(p.du.row(row + r), block, p.D ? du + g * get(p.D, block) : du);
      V d = din * u + load<T, N>(de + r * N) * kLn2;
      if (p.softplus) d *= softplus_grad<T, N>(shifted_delta(r, block));
      put(p.ddelta.row(row + r), block, d);
      dD_sum += g * u, dbias_sum += d;
      if (p.z.data) {
        const V z = get(p.z.row(row + r), block);
        put(p.dz.row(row + r), block,
            get(p.dy.row(row + r), block) * skip(r, block) * silu_grad<T, N>(z, sigmoid<T, N>(z)));
      }
    }
    store<T, N>(dD + block * N, load<T, N>(dD + block * N) + dD_sum);
    store<T, N>(dbias + block * N, load<T, N>(dbias + block * N) + dbias_sum);
  }

  void store_input_gradients() const {
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t offset = (part * p.num_rows + row + r) * num_states;
      for (int64_t s = 0; s < num_states; ++s) {
        p.dB[offset + s] = sum<T, N>(load<T, N>(dB + (s * kRows + r) * N));
        p.dC[offset + s] = sum<T, N>(load<T, N>(dC + (s * kRows + r) * N));
      }
    }
  }

  void backward(int64_t sequence) {
    seq = sequence;
    for (int64_t b = 0; b < blocks; ++b) read(of_sequence(p.final_state_grad, seq), b, at(state, b));
    for (int64_t chunk = num_chunks() - 1; chunk >= 0; --chunk) {
      begin_chunk(chunk);
      std::fill(dB, dB + num_states * kRows * N, T(0));
      std::fill(dC, dC + num_states * kRows * N, T(0));
      for (int64_t b = 0; b < blocks; ++b) {
        read(of_sequence(p.saved, checkpoint(chunk)), b, before);
        find_steps(b);
        find_output_gradients(b);
        for_states([&](auto k, int64_t s) {
          constexpr int K = decltype(k)::value;
          if (p.z.data) {
            advance<K, true, true>(at(A, b), before, s);
          } else {
            advance<K, false, true>(at(A, b), before, s);
          }
          retreat<K>(b, s);
        });
        store_rows(b);
      }
      store_input_gradients();
    }
    if (p.initial_state_grad)
      for (int64_t b = 0; b < blocks; ++b) write(at(state, b), b, of_sequence(p.initial_state_grad, seq));
  }
};

template <typename T>
using SelectiveScanOf = SelectiveScan<T, RECGRELA_VECTOR_BYTES / sizeof(T)>;

template <typename T, bool kBackward>
static void selective_scan_worker(const SelectiveScanParams<T>& p, T* scratch) {
  SelectiveScanOf<T> scan(p, scratch, kBackward);
  for (int64_t item; (item = p.next->fetch_add(1)) < p.num_items();) {
    const int64_t group = item / p.num_parts();
    scan.begin_part(item % p.num_parts());
    if constexpr (kBackward) scan.begin_gradients();
    for (int64_t seq = p.groups.begin(group); seq < p.groups.end(group); ++seq) {
      if constexpr (kBackward) {
        scan.backward(seq);
      } else {
        scan.forward(seq);
      }
    }
    if constexpr (kBackward) scan.store_gradients(group);
  }
}
