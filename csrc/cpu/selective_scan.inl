// selective_scan: some channels of one sequence at a time, in chunks of kCheckpointRows rows. The lanes are channels.
// Each pass over the rows of a chunk, whose operands stay in the L1 cache, computes a few states:
//   h = exp(delta A) h + (delta u) B;   y += C h
// The backward recomputes a chunk's states from the checkpoint before it, then propagates the gradient of the state
// through its rows in reverse:
//   d_h = d_y C + exp(delta A) d_h' of the next row;   d_C += d_y h;     d_B += d_h delta u;   d_delta_u += d_h B
//   e = d_h exp(delta A) h' of the previous row;       d_A += e delta;   d_delta += e A
// d_B and d_C are sums over the channels: first lane by lane, then across the lanes once per chunk. Lanes after the
// last channel contain zeros, which add nothing.

template <typename T>
struct SelectiveScan {
  static constexpr int N = RECGRELA_VECTOR_BYTES / sizeof(T);
  using V = Vec<T, N>;
  static constexpr int64_t kRows = kCheckpointRows;
  static constexpr int kUnroll = 2;
  static constexpr T kLog2E = T(1.44269504088896340736), kLn2 = T(0.69314718055994530942);

  const SelectiveScanParams<T>& p;
  const int64_t num_states;
  // For all channels of the item: [blocks, states, N], where a block is N channels.
  T* A;      // times log2(e)
  T* state;  // in the backward the gradient of the state after the current rows
  T* d_A;
  T *d_D, *d_bias;  // [blocks, N]
  // For the current block and chunk: [kRows, N] unless a comment gives a shape.
  T *step, *delta_u, *out;        // delta with bias and softplus, delta u, y
  T *d_out, *d_delta_u, *sum_eA;  // gradients of y and of delta u; sum of e A log2(e)
  T *decay, *h;                   // exp(delta A) [kUnroll, kRows, N], states [kUnroll, kRows + 1, N]
  T* checkpoint;                  // [states, N], state before the chunk
  T *d_B, *d_C;                   // [states, kRows, N]

  // The current item of its group, sequence and chunk.
  int64_t number = 0, first = 0, blocks = 0, seq = 0, row = 0, rows = 0;

  SelectiveScan(const SelectiveScanParams<T>& p, T* arena, bool backward) : p(p), num_states(p.num_states) {
    auto take = [&](int64_t n) { return std::exchange(arena, arena + n * N); };
    const int64_t max_blocks = ceil_div(p.item_channels, N);
    A = take(max_blocks * num_states), state = take(max_blocks * num_states);
    for (T** x : {&step, &delta_u, &out}) *x = take(kRows);
    if (!backward) return;
    d_A = take(max_blocks * num_states), d_D = take(max_blocks), d_bias = take(max_blocks);
    for (T** x : {&d_out, &d_delta_u, &sum_eA}) *x = take(kRows);
    decay = take(kUnroll * kRows), h = take(kUnroll * (kRows + 1)), checkpoint = take(num_states);
    d_B = take(num_states * kRows), d_C = take(num_states * kRows);
  }

  static int64_t scratch(const SelectiveScanParams<T>& p, bool backward) {
    const int64_t max_blocks = ceil_div(p.item_channels, N), n = p.num_states;
    int64_t vectors = 2 * max_blocks * n + 3 * kRows;
    if (backward) vectors += max_blocks * (n + 2) + 3 * kRows + kUnroll * (2 * kRows + 1) + n + 2 * n * kRows;
    return vectors * N;
  }

  // First channel of a block, and the number of its lanes that are channels.
  int64_t channel(int64_t block) const { return first + block * N; }
  int64_t count(int64_t block) const { return std::min<int64_t>(N, p.channels - channel(block)); }
  V get(const T* x, int64_t block) const { return load_some<T, N>(x + channel(block), count(block)); }
  void put(T* x, int64_t block, V v) const { store_some<T, N>(x + channel(block), v, count(block)); }
  T* at(T* x, int64_t block) const { return x + block * num_states * N; }

  // Transposes a block of [channels, states] so that channels are lanes, and back; null reads as zeros.
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
  // Entry i of an array [*, channels, states], which may be null.
  template <typename E>
  E* entry(E* x, int64_t i) const {
    return x ? x + i * p.channels * num_states : nullptr;
  }

  void begin_item(int64_t item_of_group) {
    number = item_of_group, first = number * p.item_channels;
    blocks = ceil_div(std::min(p.item_channels, p.channels - first), N);
    for (int64_t b = 0; b < blocks; ++b) read(p.A, b, at(A, b));
    for (int64_t i = 0; i < blocks * num_states * N; ++i) A[i] *= kLog2E;
  }

  void begin_chunk(int64_t chunk) {
    row = p.cu_seqlens[seq] + chunk * kRows;
    rows = std::min(kRows, p.cu_seqlens[seq + 1] - row);
  }
  int64_t num_chunks() const { return ceil_div(p.cu_seqlens[seq + 1] - p.cu_seqlens[seq], kRows); }
  int64_t checkpoint_index(int64_t chunk) const { return p.cu_seqlens[seq] / kRows + seq + chunk; }

  V biased_delta(int64_t r, int64_t block) const {
    const V delta = get(p.delta.row(row + r), block);
    return p.delta_bias ? delta + get(p.delta_bias, block) : delta;
  }

  void compute_steps(int64_t block) const {
    for (int64_t r = 0; r < rows; ++r) {
      V d = biased_delta(r, block);
      if (p.softplus) d = softplus<T, N>(d);
      store<T, N>(step + r * N, d);
      store<T, N>(delta_u + r * N, d * get(p.u.row(row + r), block));
      store<T, N>(out + r * N, V{});
    }
  }

  // Advances the K states from `s` on through the rows. kKeep stores the states and decays for the backward.
  template <int K, bool kOut, bool kKeep>
  void advance(const T* A_block, T* states, int64_t s) const {
    V a[K], x[K];
    for (int k = 0; k < K; ++k) {
      a[k] = load<T, N>(A_block + (s + k) * N), x[k] = load<T, N>(states + (s + k) * N);
      if constexpr (kKeep) store<T, N>(h + k * (kRows + 1) * N, x[k]);
    }
    for (int64_t r = 0; r < rows; ++r) {
      const V d = load<T, N>(step + r * N), in = load<T, N>(delta_u + r * N);
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

  // Returns y before the gate.
  V add_skip(int64_t r, int64_t block) const {
    const V y = load<T, N>(out + r * N);
    return p.D ? y + get(p.D, block) * get(p.u.row(row + r), block) : y;
  }

  void forward(int64_t sequence) {
    seq = sequence;
    for (int64_t b = 0; b < blocks; ++b) read(entry(p.initial_state, seq), b, at(state, b));
    for (int64_t chunk = 0; chunk < num_chunks(); ++chunk) {
      begin_chunk(chunk);
      for (int64_t b = 0; b < blocks; ++b) {
        if (p.checkpoints) write(at(state, b), b, entry(p.checkpoints, checkpoint_index(chunk)));
        compute_steps(b);
        for_states([&](auto k, int64_t s) { advance<decltype(k)::value, true, false>(at(A, b), at(state, b), s); });
        for (int64_t r = 0; r < rows; ++r) {
          V y = add_skip(r, b);
          if (p.z.data) {
            const V z = get(p.z.row(row + r), b);
            y *= z * sigmoid<T, N>(z);
          }
          put(p.y.row(row + r), b, y);
        }
      }
    }
    if (p.final_state)
      for (int64_t b = 0; b < blocks; ++b) write(at(state, b), b, entry(p.final_state, seq));
    if (p.checkpoints) clear_unused_checkpoints();
  }

  // Zeroes the unused checkpoints between this sequence's and the next one's.
  void clear_unused_checkpoints() const {
    const int64_t end = p.cu_seqlens[seq + 1] / kRows + seq + 1;
    const int64_t channels = std::min(p.item_channels, p.channels - first);
    for (int64_t i = checkpoint_index(num_chunks()); i < end; ++i)
      std::fill_n(entry(p.checkpoints, i) + first * num_states, channels * num_states, T(0));
  }

  // selective_scan_backward.inl
  void begin_gradients() const;
  void backward(int64_t sequence);
  void compute_d_out(int64_t block) const;
  template <int K>
  void backpropagate(int64_t block, int64_t s) const;
  void store_row_gradients(int64_t block) const;
  void store_input_gradients() const;
  void store_gradients(int64_t group) const;
};

#include "selective_scan_backward.inl"

template <typename T, bool kBackward>
static void selective_scan_worker(const SelectiveScanParams<T>& p, T* scratch) {
  SelectiveScan<T> scan(p, scratch, kBackward);
  for (int64_t item; p.queue->take(item);) {
    const int64_t group = item / p.items_per_group();
    scan.begin_item(item % p.items_per_group());
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

template <typename T>
static constexpr SelectiveScanKernels<T> kKernels{SelectiveScan<T>::scratch, selective_scan_worker<T, false>,
                                                  selective_scan_worker<T, true>};
