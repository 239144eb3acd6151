// activation_dropout: an activation, then dropout whose draws are a hash of the seed and the element's place, so
// that the backward makes them again and nothing but x is kept.

// A permutation of the 32-bit numbers that scatters neighbours (the constants are those of "lowbias32").
template <typename U>
RECGRELA_INLINE U scatter_bits(U h) {
  h ^= h >> 16;
  h *= 0x7feb352du;
  h ^= h >> 15;
  h *= 0x846ca68bu;
  return h ^ (h >> 16);
}

// Uniform in 0 .. 2^32 - 1 for the elements i .. i + N.
template <int N>
RECGRELA_INLINE Vec<uint32_t, N> draw(uint64_t seed, uint64_t i) {
  Vec<uint32_t, N> place;
  for (int j = 0; j < N; ++j) place[j] = j;
  place += static_cast<uint32_t>(i) + static_cast<uint32_t>(seed);  // i is a multiple of N: no carry within
  const uint32_t key = static_cast<uint32_t>(seed >> 32) + static_cast<uint32_t>(i >> 32) * 0x9e3779b9u;
  return scatter_bits(scatter_bits(place) ^ key);
}

// Phi(-|x|) of the normal distribution, and e = exp(-x^2 / 2). In float32 e times a polynomial in
// 1 / (1 + 0.21 |x|), fitted to 1.7e-8 relative.
template <typename T, int N>
RECGRELA_INLINE Vec<T, N> normal_tail(Vec<T, N> x, Vec<T, N>& e) {
  using V = Vec<T, N>;
  e = exp<T, N, false>(x * x * T(-0.5));
  if constexpr (sizeof(T) == 4) {
    const V t = T(1) / (T(1) + T(0.21) * (x < T(0) ? -x : x));
    V p = splat<T, N>(T(-0.07165697));
    for (const T c : {T(0.28359187), T(-0.33026036), T(0.34940913), T(-0.0939309), T(0.12487519), T(0.06919153),
                      T(0.08506895), T(0.08371157)})
      p = p * t + c;
    return p * t * e;
  } else {
    V p;
    for (int i = 0; i < N; ++i) p[i] = T(0.5) * std::erfc(std::abs(x[i]) * T(0.70710678118654752440));
    return p;
  }
}

template <typename T, int N, Activation kActivation>
RECGRELA_INLINE Vec<T, N> activate(Vec<T, N> x) {
  if constexpr (kActivation == Activation::kRelu) {
    return x < T(0) ? Vec<T, N>{} : x;
  } else if constexpr (kActivation == Activation::kSilu) {
    return x * sigmoid<T, N>(x);
  } else if constexpr (kActivation == Activation::kGelu) {
    Vec<T, N> e;
    const Vec<T, N> tail = normal_tail<T, N>(x, e);
    return x * (x > T(0) ? T(1) - tail : tail);
  } else {
    return x;
  }
}

template <typename T, int N, Activation kActivation>
RECGRELA_INLINE Vec<T, N> activate_grad(Vec<T, N> x) {
  const Vec<T, N> one = splat<T, N>(T(1));
  if constexpr (kActivation == Activation::kRelu) {
    return x > T(0) ? one : Vec<T, N>{};
  } else if constexpr (kActivation == Activation::kSilu) {
    return silu_grad<T, N>(x, sigmoid<T, N>(x));
  } else if constexpr (kActivation == Activation::kGelu) {
    Vec<T, N> e;
    const Vec<T, N> tail = normal_tail<T, N>(x, e);
    return (x > T(0) ? one - tail : tail) + x * e * T(0.39894228040143267794);  // 1 / sqrt(2 pi)
  } else {
    return one;
  }
}

template <typename T, int N, Activation kActivation, bool kBackward>
RECGRELA_INLINE Vec<T, N> activation_dropout_lanes(const ActivationDropoutParams<T>& p, int64_t i, Vec<T, N> x,
                                                   Vec<T, N> dy) {
  using V = Vec<T, N>;
  const V y = kBackward ? dy * activate_grad<T, N, kActivation>(x) : activate<T, N, kActivation>(x);
  if (p.threshold == 0) return y;
  const auto kept = draw<N>(p.seed, i) >= p.threshold;
  return __builtin_convertvector(kept, typename VecOf<T, N>::mask) ? y * p.scale : V{};
}

template <typename T, Activation kActivation, bool kBackward>
static void activation_dropout_range(const ActivationDropoutParams<T>& p, int64_t begin, int64_t end) {
  constexpr int N = RECGRELA_VECTOR_BYTES / sizeof(T);
  using V = Vec<T, N>;
  int64_t i = begin;
  for (; i + N <= end; i += N) {
    V dy{};
    if constexpr (kBackward) dy = load<T, N>(p.dy + i);
    store<T, N>(p.out + i, activation_dropout_lanes<T, N, kActivation, kBackward>(p, i, load<T, N>(p.x + i), dy));
  }
  if (i == end) return;
  V x{}, dy{};
  for (int64_t j = i; j < end; ++j) {
    x[j - i] = p.x[j];
    if constexpr (kBackward) dy[j - i] = p.dy[j];
  }
  const V y = activation_dropout_lanes<T, N, kActivation, kBackward>(p, i, x, dy);
  for (int64_t j = i; j < end; ++j) p.out[j] = y[j - i];
}

template <typename T, bool kBackward>
static void activation_dropout_worker(const ActivationDropoutParams<T>& p, T*) {
  auto work = [&](auto activation) {
    for (int64_t item; (item = p.next->fetch_add(1)) < p.num_items();)
      activation_dropout_range<T, decltype(activation)::value, kBackward>(
          p, item * p.kItem, std::min((item + 1) * p.kItem, p.numel));
  };
  switch (p.activation) {
    case Activation::kNone: return work(std::integral_constant<Activation, Activation::kNone>{});
    case Activation::kRelu: return work(std::integral_constant<Activation, Activation::kRelu>{});
    case Activation::kSilu: return work(std::integral_constant<Activation, Activation::kSilu>{});
    case Activation::kGelu: return work(std::integral_constant<Activation, Activation::kGelu>{});
  }
}
