// Activations followed by dropout. Whether an element is dropped depends on a hash of the seed and the element's index,
// which the backward recomputes, so that no mask is stored.

// Returns uniform random integers in 0 .. 2^32 - 1 for the elements i .. i + N: a hash of the index by the two multiply
// and xor-shift rounds of "lowbias32", with half of the seed added before each round.
template <int N>
RECGRELA_INLINE Vec<uint32_t, N> draw(uint64_t seed, int64_t i) {
  Vec<uint32_t, N> h;
  for (int j = 0; j < N; ++j) h[j] = j;
  h += static_cast<uint32_t>(i) + static_cast<uint32_t>(seed);
  h = (h ^ (h >> 16)) * 0x7feb352du + static_cast<uint32_t>(seed >> 32);
  h = (h ^ (h >> 15)) * 0x846ca68bu;
  return h ^ (h >> 16);
}

// Returns Phi(-|x|) of the normal distribution and sets e = exp(-x^2 / 2). In float32 it is e times a polynomial in
// 1 / (1 + 0.21 |x|), fitted to a relative error of 1.7e-8.
template <typename T, int N>
RECGRELA_INLINE Vec<T, N> normal_tail(Vec<T, N> x, Vec<T, N>& e) {
  using V = Vec<T, N>;
  constexpr T kLow = sizeof(T) == 4 ? T(-80) : T(-700);  // products with e stay normal numbers, which are fast
  const V exponent = x * x * T(-0.5);
  e = exp<T, N, false, false>(exponent < kLow ? splat<T, N>(kLow) : exponent);
  if constexpr (sizeof(T) == 4) {
    const V t = T(1) / (T(1) + T(0.21) * (x < T(0) ? -x : x));
    const V t2 = t * t, t4 = t2 * t2;  // pairs shorten the chain of dependent operations
    const V low = (T(0.08506895) * t + T(0.08371157)) + t2 * (T(0.12487519) * t + T(0.06919153));
    const V high = (T(0.34940913) * t + T(-0.0939309)) + t2 * (T(0.28359187) * t + T(-0.33026036));
    return t * e * (low + t4 * (high + t4 * T(-0.07165697)));
  } else {
    V p;
    for (int i = 0; i < N; ++i) p[i] = T(0.5) * std::erfc(std::abs(x[i]) * T(0.70710678118654752440));
    return p;
  }
}

// Returns act(x) and sets slope = act'(x).
template <typename T, int N, Activation kActivation>
RECGRELA_INLINE Vec<T, N> activate(Vec<T, N> x, Vec<T, N>& slope) {
  const Vec<T, N> zero{}, one = splat<T, N>(T(1));
  if constexpr (kActivation == Activation::kRelu) {
    slope = x > zero ? one : zero;
    return x < zero ? zero : x;
  } else if constexpr (kActivation == Activation::kSilu) {
    const Vec<T, N> s = sigmoid<T, N>(x);
    slope = silu_grad<T, N>(x, s);
    return x * s;
  } else if constexpr (kActivation == Activation::kGelu) {
    Vec<T, N> e;
    const Vec<T, N> tail = normal_tail<T, N>(x, e), cdf = x > zero ? one - tail : tail;
    slope = cdf + x * e * T(0.39894228040143267794);  // 1 / sqrt(2 pi)
    return x * cdf;
  } else {
    slope = one;
    return x;
  }
}

// Dropout of the elements i .. i + N: scales the elements that are kept and sets the others to zero.
template <typename T, int N>
struct Drop {
  const Dropout<T>& p;
  typename VecOf<T, N>::mask kept;

  Drop(const Dropout<T>& p, int64_t i) : p(p) {
    if (p.threshold > 0) kept = __builtin_convertvector(draw<N>(p.seed, i) >= p.threshold, typename VecOf<T, N>::mask);
  }
  Vec<T, N> operator()(Vec<T, N> x) const { return p.threshold == 0 ? x : kept ? x * p.scale : Vec<T, N>{}; }
};

// Computes y = drop(act(x)) of the elements i .. i + n; x and y point to the first. Elements that do not fill a vector
// go through a buffer.
template <typename T, Activation kActivation>
static void activate_and_drop(const Dropout<T>& p, int64_t i, int64_t n, const T* x, T* y) {
  constexpr int N = RECGRELA_VECTOR_BYTES / sizeof(T);
  auto lanes = [&](int64_t j, const T* x, T* y) {
    Vec<T, N> slope;
    store<T, N>(y, Drop<T, N>(p, i + j)(activate<T, N, kActivation>(load<T, N>(x), slope)));
  };
  int64_t j = 0;
  for (; j + N <= n; j += N) lanes(j, x + j, y + j);
  if (j == n) return;
  T last[N]{};
  std::copy(x + j, x + n, last);
  lanes(j, last, last);
  std::copy_n(last, n - j, y + j);
}

// Replaces x by y = drop(act(x)) and d_y by d_x, for the elements i .. i + n.
template <typename T, Activation kActivation>
static void activate_and_drop_backward(const Dropout<T>& p, int64_t i, int64_t n, T* x, T* d_y) {
  constexpr int N = RECGRELA_VECTOR_BYTES / sizeof(T);
  auto lanes = [&](int64_t j, T* x, T* d_y) {
    const Drop<T, N> drop(p, i + j);
    Vec<T, N> slope;
    store<T, N>(x, drop(activate<T, N, kActivation>(load<T, N>(x), slope)));
    store<T, N>(d_y, drop(load<T, N>(d_y)) * slope);
  };
  int64_t j = 0;
  for (; j + N <= n; j += N) lanes(j, x + j, d_y + j);
  if (j == n) return;
  T last[2][N]{};
  std::copy(x + j, x + n, last[0]);
  std::copy(d_y + j, d_y + n, last[1]);
  lanes(j, last[0], last[1]);
  std::copy_n(last[0], n - j, x + j);
  std::copy_n(last[1], n - j, d_y + j);
}
