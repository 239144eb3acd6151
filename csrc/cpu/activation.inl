// Activations followed by dropout. Whether an element is dropped depends on a hash of the seed and the element's index,
// which the backward recomputes, so that no mask is stored.

// Returns a hash of N indices by the two multiply and xor-shift rounds of "lowbias32", with half of the seed added
// before each round. The last step, h ^ (h >> 16), is left to the caller.
template <int N>
RECGRELA_INLINE Vec<uint32_t, N> mix(uint64_t seed, Vec<uint32_t, N> h) {
  h += static_cast<uint32_t>(seed);
  h = (h ^ (h >> 16)) * 0x7feb352du + static_cast<uint32_t>(seed >> 32);
  return (h ^ (h >> 15)) * 0x846ca68bu;
}

constexpr int64_t kDrawBlock = 16;  // the elements i and i + 8 of such a block have the same hash

// Returns uniform random integers of 16 bits for N elements from begin + i on, in the upper halves of the results; the
// lower halves have no meaning. Of a hash, the lower half is the draw of the element whose bit 3 is 0, the upper half
// that of the other. kAligned: begin is a multiple of kDrawBlock and i one of N, so that the compiler can compute a
// hash once for both elements.
template <int N, bool kAligned>
RECGRELA_INLINE Vec<uint32_t, N> draw(uint64_t seed, int64_t begin, int64_t i) {
#if defined(__clang__) || __GNUC__ >= 12
  constexpr bool kConcatenates = true;
#else
  constexpr bool kConcatenates = false;  // no __builtin_shufflevector
#endif
  constexpr int kHashes = N < kDrawBlock ? N : kDrawBlock / 2;
  if (N == kDrawBlock ? kConcatenates && (kAligned || (begin + i) % N == 0) : kAligned) {
    Vec<uint32_t, kHashes> index;
    for (int j = 0; j < kHashes; ++j) index[j] = j;
    const auto h = mix<kHashes>(seed, index + static_cast<uint32_t>(begin + (i & ~int64_t{8})));
    const auto low = h ^ (h << 16);  // h >> 16 is the last step of the hash
    if constexpr (N < kDrawBlock) {
      return i & 8 ? h : low;
    } else if constexpr (kConcatenates) {
      return __builtin_shufflevector(low, h, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    }
  }
  Vec<uint32_t, N> index;
  for (int j = 0; j < N; ++j) index[j] = j;
  index += static_cast<uint32_t>(begin + i);
  const auto h = mix<N>(seed, index & ~8u);
  return (index & 8) != 0 ? h : h ^ (h << 16);
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

// Dropout of N elements from begin + i on, which `draw` describes: scales the elements that are kept and sets the
// others to zero.
template <typename T, int N, bool kAligned = false>
struct Drop {
  const Dropout<T>& p;
  typename VecOf<T, N>::mask kept;

  Drop(const Dropout<T>& p, int64_t begin, int64_t i) : p(p) {
    if (p.threshold == 0) return;
    const auto kept32 = draw<N, kAligned>(p.seed, begin, i) >= p.threshold << 16;
    kept = __builtin_convertvector(kept32, typename VecOf<T, N>::mask);
  }
  Vec<T, N> operator()(Vec<T, N> x) const { return p.threshold == 0 ? x : kept ? x * p.scale : Vec<T, N>{}; }
};

// Calls f(drop, j) for the whole vectors j .. j + N of the n elements whose first has the index i, and returns the end
// of the last. The vectors of a block of draws are one iteration, so that they share hashes.
template <typename T, typename F>
RECGRELA_INLINE int64_t for_vectors(const Dropout<T>& p, int64_t i, int64_t n, F&& f) {
  constexpr int N = RECGRELA_VECTOR_BYTES / sizeof(T);
  int64_t j = 0;
  if (i % kDrawBlock == 0) {
    for (; j + kDrawBlock <= n; j += kDrawBlock) {
#pragma GCC unroll 8
      for (int64_t k = 0; k < kDrawBlock; k += N) f(Drop<T, N, true>(p, i + j, k), j + k);
    }
  }
  for (; j + N <= n; j += N) f(Drop<T, N>(p, i, j), j);
  return j;
}

// Computes y = drop(act(x)) of the elements i .. i + n; x and y point to the first. Elements that do not fill a vector
// go through a buffer.
template <typename T, Activation kActivation>
static void activate_and_drop(const Dropout<T>& p, int64_t i, int64_t n, const T* x, T* y) {
  constexpr int N = RECGRELA_VECTOR_BYTES / sizeof(T);
  auto lanes = [](const auto& drop, const T* x, T* y) {
    Vec<T, N> slope;
    store<T, N>(y, drop(activate<T, N, kActivation>(load<T, N>(x), slope)));
  };
  const int64_t j = for_vectors(p, i, n, [&](const auto& drop, int64_t j) { lanes(drop, x + j, y + j); });
  if (j == n) return;
  T last[N]{};
  std::copy(x + j, x + n, last);
  lanes(Drop<T, N>(p, i, j), last, last);
  std::copy_n(last, n - j, y + j);
}

// Replaces x by y = drop(act(x)) and d_y by d_x, for the elements i .. i + n.
template <typename T, Activation kActivation>
static void activate_and_drop_backward(const Dropout<T>& p, int64_t i, int64_t n, T* x, T* d_y) {
  constexpr int N = RECGRELA_VECTOR_BYTES / sizeof(T);
  auto lanes = [](const auto& drop, T* x, T* d_y) {
    Vec<T, N> slope;
    store<T, N>(x, drop(activate<T, N, kActivation>(load<T, N>(x), slope)));
    store<T, N>(d_y, drop(load<T, N>(d_y)) * slope);
  };
  const int64_t j = for_vectors(p, i, n, [&](const auto& drop, int64_t j) { lanes(drop, x + j, d_y + j); });
  if (j == n) return;
  T last[2][N]{};
  std::copy(x + j, x + n, last[0]);
  std::copy(d_y + j, d_y + n, last[1]);
  lanes(Drop<T, N>(p, i, j), last[0], last[1]);
  std::copy_n(last[0], n - j, x + j);
  std::copy_n(last[1], n - j, d_y + j);
}

// Calls f(std::integral_constant<Activation, activation>).
template <typename F>
static inline void with_activation(Activation activation, F&& f) {
  switch (activation) {
    case Activation::kRelu:
      return f(std::integral_constant<Activation, Activation::kRelu>{});
    case Activation::kSilu:
      return f(std::integral_constant<Activation, Activation::kSilu>{});
    case Activation::kGelu:
      return f(std::integral_constant<Activation, Activation::kGelu>{});
    case Activation::kNone:
      return f(std::integral_constant<Activation, Activation::kNone>{});
  }
}
