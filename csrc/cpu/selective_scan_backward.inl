// The backward of SelectiveScan.

template <typename T>
void SelectiveScan<T>::begin_gradients() const {
  std::fill(d_A, d_A + blocks * num_states * N, T(0));
  std::fill(d_D, d_D + blocks * N, T(0));
  std::fill(d_bias, d_bias + blocks * N, T(0));
}

template <typename T>
void SelectiveScan<T>::store_gradients(int64_t group) const {
  for (int64_t b = 0; b < blocks; ++b) {
    write(at(d_A, b), b, p.d_A + group * p.channels * num_states);
    if (p.d_D) put(p.d_D + group * p.channels, b, load<T, N>(d_D + b * N));
    if (p.d_delta_bias) put(p.d_delta_bias + group * p.channels, b, load<T, N>(d_bias + b * N));
  }
}

// Computes the gradient of y before the gate.
template <typename T>
void SelectiveScan<T>::compute_d_out(int64_t block) const {
  for (int64_t r = 0; r < rows; ++r) {
    V g = get(p.d_y.row(row + r), block);
    if (p.z.data) {
      const V z = get(p.z.row(row + r), block);
      g *= z * sigmoid<T, N>(z);
    }
    store<T, N>(d_out + r * N, g);
    store<T, N>(d_delta_u + r * N, V{});
    store<T, N>(sum_eA + r * N, V{});
  }
}

// Propagates the gradient of the K states from `s` on through the rows in reverse. advance() must have stored the
// states.
template <typename T>
template <int K>
void SelectiveScan<T>::backpropagate(int64_t block, int64_t s) const {
  V a[K], g[K], d_a[K];
  for (int k = 0; k < K; ++k) {
    a[k] = load<T, N>(at(A, block) + (s + k) * N), g[k] = load<T, N>(at(state, block) + (s + k) * N);
    d_a[k] = V{};
  }
  for (int64_t r = rows - 1; r >= 0; --r) {
    const V d = load<T, N>(step + r * N), in = load<T, N>(delta_u + r * N), d_y = load<T, N>(d_out + r * N);
    const T *const b = p.B.row(row + r) + s, *const c = p.C.row(row + r) + s;
    V d_in = load<T, N>(d_delta_u + r * N), sum_eA_r = load<T, N>(sum_eA + r * N);
    for (int k = 0; k < K; ++k) {
      T *const d_b = d_B + ((s + k) * kRows + r) * N, *const d_c = d_C + ((s + k) * kRows + r) * N;
      const T* const x = h + (k * (kRows + 1) + r) * N;
      const V d_h = d_y * c[k] + g[k];
      store<T, N>(d_c, load<T, N>(d_c) + d_y * load<T, N>(x + N));
      store<T, N>(d_b, load<T, N>(d_b) + d_h * in);
      d_in += d_h * b[k];
      g[k] = d_h * load<T, N>(decay + (k * kRows + r) * N);
      const V e = g[k] * load<T, N>(x);
      sum_eA_r += e * a[k];
      d_a[k] += e * d;
    }
    store<T, N>(d_delta_u + r * N, d_in);
    store<T, N>(sum_eA + r * N, sum_eA_r);
  }
  for (int k = 0; k < K; ++k) {
    T* const sum = at(d_A, block) + (s + k) * N;
    store<T, N>(sum, load<T, N>(sum) + d_a[k]);
    store<T, N>(at(state, block) + (s + k) * N, g[k]);
  }
}

template <typename T>
void SelectiveScan<T>::store_row_gradients(int64_t block) const {
  V d_D_sum{}, d_bias_sum{};
  for (int64_t r = 0; r < rows; ++r) {
    const V u = get(p.u.row(row + r), block), g = load<T, N>(d_out + r * N), d_in = load<T, N>(d_delta_u + r * N);
    const V d_u = d_in * load<T, N>(step + r * N);
    put(p.d_u.row(row + r), block, p.D ? d_u + g * get(p.D, block) : d_u);
    V d = d_in * u + load<T, N>(sum_eA + r * N) * kLn2;
    if (p.softplus) d *= softplus_grad<T, N>(biased_delta(r, block));
    put(p.d_delta.row(row + r), block, d);
    d_D_sum += g * u, d_bias_sum += d;
    if (p.z.data) {
      const V z = get(p.z.row(row + r), block);
      put(p.d_z.row(row + r), block,
          get(p.d_y.row(row + r), block) * add_skip(r, block) * silu_grad<T, N>(z, sigmoid<T, N>(z)));
    }
  }
  store<T, N>(d_D + block * N, load<T, N>(d_D + block * N) + d_D_sum);
  store<T, N>(d_bias + block * N, load<T, N>(d_bias + block * N) + d_bias_sum);
}

template <typename T>
void SelectiveScan<T>::store_input_gradients() const {
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t offset = (number * p.num_rows + row + r) * num_states;
    for (int64_t s = 0; s < num_states; ++s) {
      p.d_B[offset + s] = sum<T, N>(load<T, N>(d_B + (s * kRows + r) * N));
      p.d_C[offset + s] = sum<T, N>(load<T, N>(d_C + (s * kRows + r) * N));
    }
  }
}

template <typename T>
void SelectiveScan<T>::backward(int64_t sequence) {
  seq = sequence;
  for (int64_t b = 0; b < blocks; ++b) read(entry(p.d_final_state, seq), b, at(state, b));
  for (int64_t chunk = num_chunks() - 1; chunk >= 0; --chunk) {
    begin_chunk(chunk);
    std::fill(d_B, d_B + num_states * kRows * N, T(0));
    std::fill(d_C, d_C + num_states * kRows * N, T(0));
    for (int64_t b = 0; b < blocks; ++b) {
      read(entry(p.saved_checkpoints, checkpoint_index(chunk)), b, checkpoint);
      compute_steps(b);
      compute_d_out(b);
      for_states([&](auto k, int64_t s) {
        constexpr int K = decltype(k)::value;
        if (p.z.data) {
          advance<K, true, true>(at(A, b), checkpoint, s);
        } else {
          advance<K, false, true>(at(A, b), checkpoint, s);
        }
        backpropagate<K>(b, s);
      });
      store_row_gradients(b);
    }
    store_input_gradients();
  }
  if (p.d_initial_state)
    for (int64_t b = 0; b < blocks; ++b) write(at(state, b), b, entry(p.d_initial_state, seq));
}
