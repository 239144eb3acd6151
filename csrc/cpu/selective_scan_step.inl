// selective_scan_step: one sequence at a time. The lanes are channels where a row is read, and the states of one
// channel where the state is, so that it is read and written once in the order of memory.

template <typename T>
struct SelectiveStep {
  static constexpr int N = RECGRELA_VECTOR_BYTES / sizeof(T);
  using V = Vec<T, N>;
  static constexpr T kLog2E = T(1.44269504088896340736);
  const SelectiveScanStepParams<T>& p;
  T *const step, *const delta_u, *const out;  // [C]: delta with bias and softplus, delta u, y before the gate

  SelectiveStep(const SelectiveScanStepParams<T>& p, T* arena)
      : p(p), step(arena), delta_u(step + p.channels), out(delta_u + p.channels) {}
  static int64_t scratch(const SelectiveScanStepParams<T>& p, bool) { return 3 * p.channels; }

  template <typename F>
  RECGRELA_INLINE void for_channels(int64_t channels, F f) {
    for (int64_t c = 0; c < channels; c += N) f(c, std::min<int64_t>(N, channels - c));
  }

  void compute_steps(int64_t b) const {
    for_channels(p.channels, [&](int64_t c, int64_t n) {
      V d = load_some<T, N>(p.delta.row(b) + c, n);
      if (p.delta_bias) d += load_some<T, N>(p.delta_bias + c, n);
      if (p.softplus) d = softplus<T, N>(d);
      store_some<T, N>(step + c, d, n);
      store_some<T, N>(delta_u + c, d * load_some<T, N>(p.u.row(b) + c, n), n);
    });
  }

  template <int L>  // lanes
  void advance(int64_t b) const {
    const T *const B = p.B.row(b), *const C = p.C.row(b), *A = p.A;
    T* h = p.state.row(b);
    for (int64_t c = 0; c < p.channels; ++c, h += p.num_states, A += p.num_states) {
      const T d = step[c] * kLog2E, in = delta_u[c];
      Vec<T, L> y{};
      for (int64_t s = 0; s < p.num_states; s += L) {
        const Vec<T, L> x = exp2<T, L>(d * load<T, L>(A + s)) * load<T, L>(h + s) + in * load<T, L>(B + s);
        store<T, L>(h + s, x);
        y += x * load<T, L>(C + s);
      }
      out[c] = sum<T, L>(y);
    }
  }

  void store_output(int64_t b) const {
    for_channels(p.channels, [&](int64_t c, int64_t n) {
      V y = load_some<T, N>(out + c, n);
      if (p.D) y += load_some<T, N>(p.D + c, n) * load_some<T, N>(p.u.row(b) + c, n);
      if (p.z.data) {
        const V z = load_some<T, N>(p.z.row(b) + c, n);
        y *= z * sigmoid<T, N>(z);
      }
      store_some<T, N>(p.y.row(b) + c, y, n);
    });
  }
};

template <typename T>
static void selective_scan_step_worker(const SelectiveScanStepParams<T>& p, T* scratch) {
  const SelectiveStep<T> scan(p, scratch);
  with_lanes<T>(p.num_states, [&](auto lanes) {
    for (int64_t group; p.queue->take(group);)
      for (int64_t b = p.groups.begin(group); b < p.groups.end(group); ++b) {
        scan.compute_steps(b);
        scan.template advance<decltype(lanes)::value>(b);
        scan.store_output(b);
      }
  });
}

template <typename T>
static constexpr SelectiveScanStepKernels<T> kKernels{SelectiveStep<T>::scratch, selective_scan_step_worker<T>,
                                                      nullptr};
