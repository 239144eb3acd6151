// The next row of a sequence in gated_rela, shared by gated_rela_step and rela_block_step: each head's state is read
// and written once, row by row, for a few columns at a time:
//   S += R phi(k)^T v;   z += phi(k);   o = R phi(q) S / (phi(q) . z + n eps), with n rows so far

#include "conv_step.inl"

// 1 / k!, the coefficients of sin
template <typename T>
constexpr T inverse_factorial(int k) {
  double c = 1;
  for (int i = 2; i <= k; ++i) c /= i;
  return T(c);
}

// (cos, sin) of the angles position * turns of the pairs of channels i .. i + N, in fractions of 2^-64 turns, side by
// side. Every lane is sin(2 pi y) with |y| <= 1/4, since cos(2 pi x) = sin(2 pi (1/4 - |x|)) for |x| <= 1/2, and
// sin(2 pi x) = cos(2 pi (x - 1/4)). These steps are integer operations, which do not round.
template <typename T, int N>
RECGRELA_INLINE Vec<T, N> cos_sin(int64_t position, const int64_t* turns, int64_t i) {
  constexpr uint64_t kQuarter = uint64_t{1} << 62;
  Vec<T, N> x;
  for (int j = 0; j < N; ++j) {
    const uint64_t product = static_cast<uint64_t>(position) * static_cast<uint64_t>(turns[(i + j) / 2]);
    const uint64_t turn = product - (j & 1 ? kQuarter : 0), size = static_cast<int64_t>(turn) < 0 ? -turn : turn;
    const int64_t y = static_cast<int64_t>(kQuarter - size);
    if constexpr (sizeof(T) == 4) {
      x[j] = static_cast<T>(static_cast<int32_t>(y >> 32)) * T(6.283185307179586477 / 4294967296.0);
    } else {
      x[j] = static_cast<T>(y) * T(6.283185307179586477 / 18446744073709551616.0);
    }
  }
  constexpr int kDegree = sizeof(T) == 4 ? 13 : 21;
  const Vec<T, N> x2 = x * x;
  Vec<T, N> series = splat<T, N>(inverse_factorial<T>(kDegree));  // kDegree % 4 == 1: the term is positive
  for (int k = kDegree - 2; k >= 1; k -= 2)
    series = series * x2 + (k % 4 == 1 ? T(1) : T(-1)) * inverse_factorial<T>(k);
  return x * series;
}

template <typename T, int N>
struct RelaStep {
  using V = Vec<T, N>;
  const GatedRelaStepParams<T>& p;
  const int64_t d, width;
  const ConvStep<T> conv;
  T *const fq, *const rq, *const fk, *const rk;  // [D]: phi(q), R phi(q), phi(k), R phi(k)

  RelaStep(const GatedRelaStepParams<T>& p, T* arena)
      : p(p),
        d(p.head_dim),
        width(p.width()),
        conv(p.kernel_size, p.width(), p.conv_weight, p.conv_bias, arena + 4 * width),
        fq(arena),
        rq(fq + width),
        fk(rq + width),
        rk(fk + width) {}
  static int64_t scratch(const GatedRelaStepParams<T>& p, bool) {
    return 4 * p.width() + ConvStep<T>::scratch(p.kernel_size, p.width());
  }

  void features(int64_t b) const {
    for (int64_t i = 0; i < width; i += N) {
      V q = phi<T, N>(load<T, N>(p.q.row(b) + i)), k = phi<T, N>(load<T, N>(p.k.row(b) + i));
      store<T, N>(fq + i, q);
      store<T, N>(fk + i, k);
      if (p.turns) {
        const V angles = cos_sin<T, N>(*p.position.row(b), p.turns, i);
        q = rotate<T, N, false>(q, angles), k = rotate<T, N, false>(k, angles);
      }
      store<T, N>(rq + i, q);
      store<T, N>(rk + i, k);
    }
  }

  // Adds the key of the head that begins at a channel to z. Returns 1 / denominator.
  T add_key(T* z, int64_t channel, T rows) const {
    V dot{};
    for (int64_t i = 0; i < d; i += N) {
      const V sum = load<T, N>(z + i) + load<T, N>(fk + channel + i);
      store<T, N>(z + i, sum);
      dot += load<T, N>(fq + channel + i) * sum;
    }
    return T(1) / (sum<T, N>(dot) + p.eps * rows);
  }

  // Updates M vectors of columns of S, from column i of the head on, and stores y.
  template <int M>
  void columns(int64_t b, T* S, int64_t channel, int64_t i, T inverse) const {
    V v[M], o[M]{};
    for (int m = 0; m < M; ++m) v[m] = load<T, N>(p.v.row(b) + channel + i + m * N);
    const T *const q = rq + channel, *const k = rk + channel;
    T* row = S + i;
    for (int64_t j = 0; j < d; ++j, row += d)
      for (int m = 0; m < M; ++m) {
        const V s = load<T, N>(row + m * N) + k[j] * v[m];
        store<T, N>(row + m * N, s);
        o[m] += q[j] * s;
      }
    for (int m = 0; m < M; ++m) {
      const int64_t c = channel + i + m * N;
      V out = o[m] * inverse;
      if (p.kernel_size) {
        const V shortcut = conv.template next<N>(v[m], p.history.row(b), c);
        out += shortcut * sigmoid<T, N>(shortcut);
      }
      if (p.g.data) {
        const V g = load<T, N>(p.g.row(b) + c);
        out *= g * sigmoid<T, N>(g);
      }
      store<T, N>(p.y.row(b) + c, out);
    }
  }

  void step(int64_t b) const {
    features(b);
    const T rows = static_cast<T>(++*p.position.row(b));
    for (int64_t head = 0; head < p.num_heads; ++head) {
      T* const S = p.kv_state.row(b) + head * (d + 1) * d;
      const T inverse = add_key(S + d * d, head * d, rows);
      int64_t i = 0;
      for (; i + 4 * N <= d; i += 4 * N) columns<4>(b, S, head * d, i, inverse);
      for (; i + 2 * N <= d; i += 2 * N) columns<2>(b, S, head * d, i, inverse);
      for (; i < d; i += N) columns<1>(b, S, head * d, i, inverse);
    }
  }
};
