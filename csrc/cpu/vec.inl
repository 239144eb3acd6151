// Short vectors, which are GNU vector extensions, and elementary functions on them. Included once per instruction set,
// inside its namespace.

constexpr int64_t kChunk = 64;  // rows of a chunk: the operands of a head of width 16 fill the L1 cache

template <typename T, int N>
struct VecOf {
  using Int = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;
  typedef T type __attribute__((vector_size(N * sizeof(T))));
  typedef T unaligned __attribute__((vector_size(N * sizeof(T)), aligned(sizeof(T))));
  typedef Int mask __attribute__((vector_size(N * sizeof(T))));
};
template <typename T, int N>
using Vec = typename VecOf<T, N>::type;

#define RECGRELA_INLINE static inline __attribute__((always_inline))

// A cast instead of memcpy, since the compiler assumes that memcpy may change any memory, sizes and pointers included.
template <typename T, int N>
RECGRELA_INLINE Vec<T, N> load(const T* p) {
  return *reinterpret_cast<const typename VecOf<T, N>::unaligned*>(p);
}

template <typename T, int N>
RECGRELA_INLINE void store(T* p, Vec<T, N> v) {
  *reinterpret_cast<typename VecOf<T, N>::unaligned*>(p) = v;
}

// Loads or stores only the first n elements if n < N; the other lanes are zero, or not stored.
template <typename T, int N>
RECGRELA_INLINE Vec<T, N> load_some(const T* p, int64_t n) {
  if (n >= N) return load<T, N>(p);
  Vec<T, N> v{};
  for (int64_t i = 0; i < n; ++i) v[i] = p[i];
  return v;
}

template <typename T, int N>
RECGRELA_INLINE void store_some(T* p, Vec<T, N> v, int64_t n) {
  if (n >= N) return store<T, N>(p, v);
  for (int64_t i = 0; i < n; ++i) p[i] = v[i];
}

template <typename T, int N>
RECGRELA_INLINE Vec<T, N> splat(T x) {
  return x - Vec<T, N>{};  // not 0 + x, which makes +0 of -0 and so costs an addition
}

template <typename T, int N>
RECGRELA_INLINE T sum(Vec<T, N> v) {
  if constexpr (N == 1) {
    return v[0];
  } else {
    Vec<T, N / 2> lo, hi;
    __builtin_memcpy(&lo, &v, sizeof(lo));
    __builtin_memcpy(&hi, reinterpret_cast<const char*>(&v) + sizeof(lo), sizeof(hi));
    return sum<T, N / 2>(lo + hi);
  }
}

// exp(x) = 2^n exp(r), |r| <= ln2/2, by a Taylor polynomial with an error of about one ulp. Arguments are clamped to
// the range of normal numbers from below with kLowClamp and from above with kHighClamp; NaN stays NaN.
template <typename T, int N, bool kHighClamp = true, bool kLowClamp = true>
RECGRELA_INLINE Vec<T, N> exp(Vec<T, N> x) {
  using V = Vec<T, N>;
  using I = typename VecOf<T, N>::mask;
  constexpr bool kFloat = sizeof(T) == 4;
  constexpr T kLow = kFloat ? T(-87.0) : T(-708.0), kHigh = kFloat ? T(88.0) : T(709.0);
  constexpr T kMagic = kFloat ? T(12582912.0) : T(6755399441055744.0);  // 1.5 * 2^(mantissa bits)
  constexpr T kLn2Hi = kFloat ? T(0.693145751953125) : T(0.693147180369123816490);
  constexpr T kLn2Lo = kFloat ? T(1.42860682030941723212e-6) : T(1.90821492927058770002e-10);
  constexpr int kMantissa = kFloat ? 23 : 52, kBias = kFloat ? 127 : 1023;

  if constexpr (kLowClamp) x = x < kLow ? splat<T, N>(kLow) : x;
  if constexpr (kHighClamp) x = x > kHigh ? splat<T, N>(kHigh) : x;
  const V shifted = x * T(1.44269504088896340736) + kMagic;
  const V n = shifted - kMagic;
  const I exponent = (I)shifted - (I)splat<T, N>(kMagic);
  const V r = (x - n * kLn2Hi) - n * kLn2Lo;
  V p;
  if constexpr (kFloat) {  // pairs shorten the chain of dependent operations
    const V r2 = r * r;
    const V high = r2 * T(1.0 / 720) + (r * T(1.0 / 120) + T(1.0 / 24));
    p = r2 * (r2 * high + (r * T(1.0 / 6) + T(0.5))) + (r + T(1));
  } else {
    p = r * T(1.0 / 6227020800.0) + T(1.0 / 479001600.0);
    p = p * r + T(1.0 / 39916800.0);
    p = p * r + T(1.0 / 3628800.0);
    p = p * r + T(1.0 / 362880.0);
    p = p * r + T(1.0 / 40320.0);
    p = p * r + T(1.0 / 5040.0);
    p = p * r + T(1.0 / 720.0);
    p = p * r + T(1.0 / 120);
    p = p * r + T(1.0 / 24);
    p = p * r + T(1.0 / 6);
    p = p * r + T(0.5);
    p = p * r + T(1);
    p = p * r + T(1);
  }
  return p * (V)((exponent + kBias) << kMantissa);
}

// ln(2)^k / k!, the coefficients of 2^r
template <typename T>
constexpr T exp2_coefficient(int k) {
  double c = 1;
  for (int i = 1; i <= k; ++i) c *= 0.69314718055994530942 / i;
  return T(c);
}

// 2^x = 2^n 2^r, where r = x - n is exact. The constant that rounds x also adds the exponent's bias.
template <typename T, int N>
RECGRELA_INLINE Vec<T, N> exp2(Vec<T, N> x) {
  using V = Vec<T, N>;
  using I = typename VecOf<T, N>::mask;
  constexpr bool kFloat = sizeof(T) == 4;
  constexpr T kLow = kFloat ? T(-126.0) : T(-1022.0), kHigh = kFloat ? T(127.0) : T(1023.0);
  constexpr T kMagic = kFloat ? T(12582912.0 + 127) : T(6755399441055744.0 + 1023);
  constexpr int kMantissa = kFloat ? 23 : 52, kDegree = kFloat ? 6 : 13;
  x = x < kLow ? splat<T, N>(kLow) : x;
  x = x > kHigh ? splat<T, N>(kHigh) : x;
  const V shifted = x + kMagic;
  const V r = x - (shifted - kMagic), r2 = r * r;
  // separate sums of even and odd powers shorten the chain of dependent operations
  V even = splat<T, N>(exp2_coefficient<T>(kDegree & ~1)), odd = splat<T, N>(exp2_coefficient<T>((kDegree - 1) | 1));
  for (int k = (kDegree & ~1) - 2; k >= 0; k -= 2) even = even * r2 + exp2_coefficient<T>(k);
  for (int k = ((kDegree - 1) | 1) - 2; k >= 1; k -= 2) odd = odd * r2 + exp2_coefficient<T>(k);
  return (odd * r + even) * (V)((I)shifted << kMantissa);
}

// log(1 + e), 0 <= e <= 1, to full relative accuracy: 2 atanh(t), t = e / (2 + e) <= 1/3, by its series.
template <typename T, int N>
RECGRELA_INLINE Vec<T, N> log1p(Vec<T, N> e) {
  constexpr int kTerms = sizeof(T) == 4 ? 8 : 17;
  const Vec<T, N> t = e / (T(2) + e), t2 = t * t;
  Vec<T, N> series = splat<T, N>(T(1) / T(2 * kTerms - 1));
  for (int k = kTerms - 2; k >= 0; --k) series = series * t2 + T(1) / T(2 * k + 1);
  return T(2) * t * series;
}

// log(1 + exp(x)), or x above the threshold, as in PyTorch.
constexpr int kSoftplusThreshold = 20;

template <typename T, int N>
RECGRELA_INLINE Vec<T, N> softplus(Vec<T, N> x) {
  const Vec<T, N> positive = x > T(0) ? x : Vec<T, N>{}, tail = log1p<T, N>(exp<T, N, false>(x > T(0) ? -x : x));
  return x > T(kSoftplusThreshold) ? x : positive + tail;
}

template <typename T, int N>
RECGRELA_INLINE Vec<T, N> sigmoid(Vec<T, N> x) {
  return T(1) / (T(1) + exp<T, N>(-x));
}

template <typename T, int N>
RECGRELA_INLINE Vec<T, N> softplus_grad(Vec<T, N> x) {
  return x > T(kSoftplusThreshold) ? splat<T, N>(T(1)) : sigmoid<T, N>(x);
}

// d silu(x) / dx, given s = sigmoid(x)
template <typename T, int N>
RECGRELA_INLINE Vec<T, N> silu_grad(Vec<T, N> x, Vec<T, N> s) {
  return s * (T(1) + x * (T(1) - s));
}

// phi(x) = elu(x) + 1
template <typename T, int N>
RECGRELA_INLINE Vec<T, N> phi(Vec<T, N> x) {
  return x > T(0) ? x + T(1) : exp<T, N, false>(x);  // exp(x) is not used if x > 0
}

// phi'(x) = min(phi(x), 1)
template <typename T, int N>
RECGRELA_INLINE Vec<T, N> phi_grad(Vec<T, N> f) {
  return f > T(1) ? splat<T, N>(T(1)) : f;
}

// Rotates the interleaved pairs (x0, x1) by the angles with the (cos, sin) pairs cs; kInverse rotates back.
template <typename T, int N, bool kInverse>
RECGRELA_INLINE Vec<T, N> rotate(Vec<T, N> x, Vec<T, N> cs) {
  Vec<T, N> sign;
  for (int i = 0; i < N; ++i) sign[i] = ((i & 1) != 0) != kInverse ? T(1) : T(-1);
#if defined(__clang__)
  Vec<T, N> c, s, y;
  for (int i = 0; i < N; ++i) c[i] = cs[i & ~1], s[i] = cs[i | 1], y[i] = x[i ^ 1];
#else
  typename VecOf<T, N>::mask even, odd, swap;
  for (int i = 0; i < N; ++i) even[i] = i & ~1, odd[i] = i | 1, swap[i] = i ^ 1;
  const Vec<T, N> c = __builtin_shuffle(cs, even), s = __builtin_shuffle(cs, odd), y = __builtin_shuffle(x, swap);
#endif
  return x * c + y * (s * sign);
}

// Calls f(std::integral_constant<int, N>) with the largest N that divides n and fits a register.
template <typename T, int N = RECGRELA_VECTOR_BYTES / sizeof(T), typename F>
static inline void with_lanes(int64_t n, F&& f) {
  if constexpr (N > 1) {
    if (n % N != 0) return with_lanes<T, N / 2>(n, static_cast<F&&>(f));
  }
  f(std::integral_constant<int, N>{});
}
