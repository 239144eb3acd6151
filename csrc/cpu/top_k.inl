// top_k: a group of queries scans a part of the table, block by block. Products of int8 or float32 rows and a bound on
// their error give bounds of each score. The k-th largest lower bound so far is a threshold; a row whose upper bound is
// below it is not among the best. The few rows that remain at the end are scored exactly, so that the result is exact
// whatever the error.
//
// A row is w = s q + e with integers q, a query h = t p + r likewise, and
//   |h . w - s t (p . q)| <= |h| |e| + |r| |s q| = s (|h| |e| / s + |r| |q|),
// where the bounds of a block are the maxima of |e| / s and |q| over its rows. The factors below cover rounding: a
// float32 operation has a relative error of up to u = 2^-24. At most 5 operations on numbers of up to 2 |h| |s q| make
// an upper bound, 3 more a lower bound.

// Added to |h| and |r|, relative; to |r|, times |h|; to a block's |bias|, relative; and to the threshold, relative,
// also for the rounding of exact scores to float32.
constexpr float kNormSlack = 0x1p-18f, kProductSlack = 0x1p-19f, kBiasSlack = 0x1p-21f, kScoreSlack = 0x1p-22f;
constexpr float kTiny = 0x1p-120f;  // more than what underflow takes from a bound

constexpr int kLanes = RECGRELA_VECTOR_BYTES >= 32 ? 8 : 4;  // rows of a vector
constexpr int kVectors = TopKParams::kBlockRows / kLanes;    // vectors of a block
constexpr int64_t kPrefetchBytes = 4096;                     // distance of the rows that are fetched into a cache
using Floats = Vec<float, kLanes>;
using Ints = typename VecOf<float, kLanes>::mask;

RECGRELA_INLINE bool all(Ints mask) {
#if RECGRELA_VECTOR_BYTES >= 32
  return _mm256_movemask_ps((__m256)mask) == 0xff;
#else
  int32_t every = -1;
  for (int i = 0; i < kLanes; ++i) every &= mask[i];
  return every != 0;
#endif
}

// Four elements of a query, for each row of a vector: with AVX2 magnitudes and signs, else elements 0 and 2, and 1 and
// 3, as 16-bit numbers.
struct FourDims {
#if RECGRELA_VECTOR_BYTES >= 32
  __m256i magnitudes, signs;

  RECGRELA_INLINE FourDims make(const int8_t* magnitudes, const int8_t* p) {
    int32_t m, s;
    __builtin_memcpy(&m, magnitudes, sizeof(m)), __builtin_memcpy(&s, p, sizeof(s));
    return {_mm256_set1_epi32(m), _mm256_set1_epi32(s)};
  }
  // Adds the products with four elements of each row. A sum of two products is at most 2 * 127^2 < 2^15.
  __attribute__((always_inline)) void add(const int8_t* codes, Ints& sums) const {
    const __m256i rows = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes));
    const __m256i pairs = _mm256_maddubs_epi16(magnitudes, _mm256_sign_epi8(rows, signs));
    const __m256i fours = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
    sums += (Ints)fours;  // the same bits
  }
#else
  typedef int16_t Shorts __attribute__((vector_size(4 * kLanes)));
  Shorts even, odd;

  RECGRELA_INLINE FourDims make(const int8_t*, const int8_t* p) {
    FourDims d;
    for (int i = 0; i < 2 * kLanes; ++i) d.even[i] = p[i % 2 * 2], d.odd[i] = p[i % 2 * 2 + 1];
    return d;
  }
  __attribute__((always_inline)) void add(const int8_t* codes, Ints& sums) const {
    Shorts rows;
    __builtin_memcpy(&rows, codes, sizeof(rows));
    const Shorts pairs = ((rows << 8) >> 8) * even + (rows >> 8) * odd;
    Ints both;
    __builtin_memcpy(&both, &pairs, sizeof(both));
    sums += ((both << 16) >> 16) + (both >> 16);
  }
#endif
};

// A query and the best items that it has found.
struct TopKQuery {
  const TopKParams& p;
  const int64_t index;
  const float* const h;
  double* const wide;                      // [dim], h in float64
  int8_t *const codes, *const magnitudes;  // [4 groups_of_dims]
  float step = 0, norm = 0, error = 0;     // t, |h| and |r|, the norms rounded up
  TopKFound* const found;                  // items that may be among the best
  int64_t& count;
  float threshold = -std::numeric_limits<float>::infinity();  // a score below it is not among the best

  static int64_t scratch_bytes(const TopKParams& p) {
    return round_up(p.dim * sizeof(double) + 8 * p.groups_of_dims(), 64);
  }

  TopKQuery(const TopKParams& p, int64_t index, int64_t part, char* scratch)
      : p(p),
        index(index),
        h(p.queries + index * p.dim),
        wide(reinterpret_cast<double*>(scratch)),
        codes(reinterpret_cast<int8_t*>(wide + p.dim)),
        magnitudes(codes + 4 * p.groups_of_dims()),
        found(p.found + (index * p.parts + part) * p.capacity()),
        count(p.counts[index * p.parts + part]) {
    count = 0;
    float peak = 0;
    double squares = 0, errors = 0;
    for (int64_t i = 0; i < p.dim; ++i) {
      wide[i] = h[i], squares += wide[i] * wide[i];
      peak = std::max(peak, std::abs(h[i]));
    }
    step = std::max(peak / 127, std::numeric_limits<float>::min());
    std::fill(codes, codes + 8 * p.groups_of_dims(), int8_t(0));
    for (int64_t i = 0; i < p.dim; ++i) {
      const double code = std::max(-127.0, std::min(127.0, std::nearbyint(wide[i] / step)));
      const double rest = wide[i] - code * step;
      errors += rest * rest;
      codes[i] = static_cast<int8_t>(code), magnitudes[i] = static_cast<int8_t>(std::abs(code));
    }
    norm = static_cast<float>(std::sqrt(squares)) * (1 + kNormSlack) + kTiny;
    error = static_cast<float>(std::sqrt(errors)) * (1 + kNormSlack) + kTiny;
  }

  // The score in float64, rounded to float32. Element i is added to sum i % 8 on every instruction set, so that scores
  // are equal bit by bit; products of float32 numbers are exact, so that fused additions change nothing.
  float exact_score(int64_t item) const {
    constexpr int N = RECGRELA_VECTOR_BYTES / sizeof(double), kSums = 8 / N;
    const float* const w = p.weight + item * p.dim;
    Vec<double, N> acc[kSums]{};
    int64_t i = 0;
    for (; i + 8 <= p.dim; i += 8)
      for (int j = 0; j < kSums; ++j) {
        const auto row = load<float, N>(w + i + j * N);
        acc[j] += __builtin_convertvector(row, Vec<double, N>) * load<double, N>(wide + i + j * N);
      }
    double sums[8];
    for (int j = 0; j < kSums; ++j) store<double, N>(sums + j * N, acc[j]);
    for (int j = 0; i < p.dim; ++i, ++j) sums[j] += w[i] * wide[i];
    for (int half = 4; half > 0; half /= 2)
      for (int j = 0; j < half; ++j) sums[j] += sums[j + half];
    return static_cast<float>(p.bias ? sums[0] + p.bias[item] : sums[0]) + 0.0f;  // -0 becomes 0
  }

  bool hides(int64_t item) const {
    if (item == 0 || (p.allowed && !p.allowed[item])) return true;
    return p.excluded &&
           std::binary_search(p.excluded + p.cu_excluded[index], p.excluded + p.cu_excluded[index + 1], item);
  }

  // Adds an item with bounds of its score. The k-th largest lower bound raises the threshold without reading a row.
  __attribute__((noinline)) void add(int64_t item, float lower, float upper) {
    if (item >= p.num_items || hides(item)) return;
    found[count++] = {top_k_key(lower, item), upper};
    if (count == p.capacity()) shrink();
  }

  // Drops items that are not among the best. If too many may be, as with equal rows, scores them.
  void shrink() {
    keep_best();
    if (count > p.k + p.spare / 2) score();
  }

  // Keeps the k best items, by exact scores.
  void finish() {
    keep_best();
    score();
  }

 private:
  // Scores the items exactly, and keeps the k best.
  void score() {
    constexpr int64_t kAhead = 8;
    for (int64_t i = 0; i < count; ++i) {
      if (i + kAhead < count) {
        const float* const row = p.weight + item_of(found[i + kAhead].key) * p.dim;
        for (int64_t j = 0; j < p.dim; j += 64 / sizeof(float)) __builtin_prefetch(row + j);
      }
      const int64_t item = item_of(found[i].key);
      found[i].upper = exact_score(item), found[i].key = top_k_key(found[i].upper, item);
    }
    keep_best();
    count = std::min(count, p.k);
  }

  // Moves the k best items by key to the front, and drops others below the threshold.
  void keep_best() {
    if (count < p.k) return;
    std::nth_element(found, found + p.k - 1, found + count, [](const auto& a, const auto& b) { return a.key > b.key; });
    const float kth = score_of(found[p.k - 1].key);
    threshold = std::max(threshold, kth - std::abs(kth) * kScoreSlack - kTiny);
    const auto below = [&](const TopKFound& item) { return item.upper < threshold; };
    count = std::remove_if(found + p.k, found + count, below) - found;
  }
};

// Upper bounds of the scores of a block, from int8 rows. Returns half of the distance to the lower bounds, to be
// multiplied by the scales of the rows.
static inline __attribute__((always_inline)) float int8_bounds(const TopKParams& p, const TopKQuery& q, int64_t block,
                                                               Floats* upper) {
  const int64_t dims = p.groups_of_dims(), first = block * TopKParams::kBlockRows;
  const int8_t* codes = p.codes + first * 4 * dims;
  Ints sums[kVectors]{};
  for (int64_t i = 0; i < dims; ++i, codes += 4 * TopKParams::kBlockRows) {
    const FourDims four = FourDims::make(q.magnitudes + 4 * i, q.codes + 4 * i);
    for (int j = 0; j < 4 * TopKParams::kBlockRows; j += 64) __builtin_prefetch(codes + kPrefetchBytes + j);
    for (int v = 0; v < kVectors; ++v) four.add(codes + 4 * kLanes * v, sums[v]);
  }
  const float* const bounds = p.bounds + block * TopKParams::kBounds;
  const float slack = q.norm * bounds[TopKParams::kRowError] +
                      (q.error + q.norm * kProductSlack) * bounds[TopKParams::kCodeNorm] + kTiny;
  for (int v = 0; v < kVectors; ++v) {
    const int64_t row = first + v * kLanes;
    upper[v] = (__builtin_convertvector(sums[v], Floats) * q.step + slack) * load<float, kLanes>(p.scales + row);
    if (p.biases) upper[v] += load<float, kLanes>(p.biases + row);
  }
  return slack;
}

// Upper bounds for Q queries from float32 rows: products of N elements at a time, the last ones of a row again with
// zeros. Sets slack to half of the distance to the lower bounds.
template <int Q>
static inline void float_bounds(const TopKParams& p, const TopKQuery* queries, int64_t block, Floats (*upper)[kVectors],
                                float* slack) {
  constexpr int N = RECGRELA_VECTOR_BYTES / sizeof(float), kRows = 8 / Q;
  using V = Vec<float, N>;
  const int64_t first = block * TopKParams::kBlockRows, dim = p.dim, whole = dim / N * N;
  const int64_t last = std::max<int64_t>(0, dim - N);
  V rest[Q]{};
  for (int i = 0; i < Q; ++i)
    for (int64_t d = whole; d < dim; ++d) rest[i][d - last] = queries[i].h[d];
  float sums[Q][TopKParams::kBlockRows];
  for (int64_t r = 0; r < TopKParams::kBlockRows; r += kRows) {
    const float* rows[kRows];
    for (int j = 0; j < kRows; ++j) rows[j] = p.weight + std::min(first + r + j, p.num_items - 1) * dim;
    V acc[Q][kRows]{};
    for (int64_t d = 0; d < whole; d += N) {
      V x[Q];
      for (int i = 0; i < Q; ++i) x[i] = load<float, N>(queries[i].h + d);
      for (int j = 0; j < kRows; ++j) {
        const V w = load<float, N>(rows[j] + d);
        for (int i = 0; i < Q; ++i) acc[i][j] += w * x[i];
      }
    }
    if (whole < dim)
      for (int j = 0; j < kRows; ++j) {
        const V w = load_some<float, N>(rows[j] + last, dim);
        for (int i = 0; i < Q; ++i) acc[i][j] += w * rest[i];
      }
    for (int i = 0; i < Q; ++i)
      for (int j = 0; j < kRows; ++j) sums[i][r + j] = sum<float, N>(acc[i][j]);
  }
  const float norm = p.bounds[block * TopKParams::kBounds + TopKParams::kRowNorm];
  for (int i = 0; i < Q; ++i) {
    // A sum in any order has an error of up to dim u / (1 - dim u) < 1.01 dim u, times |h| |w|; 8 u is for the bounds.
    slack[i] = queries[i].norm * norm * ((1.01f * static_cast<float>(dim) + 8) * 0x1p-24f) + kTiny;
    for (int v = 0; v < kVectors; ++v) {
      upper[i][v] = load<float, kLanes>(sums[i] + v * kLanes) + slack[i];
      if (!p.bias) continue;
      const int64_t row = first + v * kLanes;
      upper[i][v] += load_some<float, kLanes>(p.bias + row, std::max<int64_t>(0, p.num_items - row));
    }
  }
}

// Searches a block for Q queries.
template <int Q>
static inline void search_block(const TopKParams& p, TopKQuery* queries, int64_t block) {
  const float* const bounds = p.bounds + block * TopKParams::kBounds;
  const float bias_slack = bounds[TopKParams::kBias] * kBiasSlack + kTiny;
  bool skip = true;
  for (int i = 0; i < Q; ++i)
    skip &=
        queries[i].norm * bounds[TopKParams::kRowNorm] + bounds[TopKParams::kBias] < queries[i].threshold - bias_slack;
  if (skip) return;
  Floats upper[Q][kVectors];
  float slack[Q];
  if (p.codes) {
    for (int i = 0; i < Q; ++i) slack[i] = int8_bounds(p, queries[i], block, upper[i]);
  } else {
    float_bounds<Q>(p, queries, block, upper, slack);
  }
  for (int i = 0; i < Q; ++i) {
    const float limit = queries[i].threshold - bias_slack;
    Ints below = upper[i][0] < limit;  // false for NaN
    for (int v = 1; v < kVectors; ++v) below &= upper[i][v] < limit;
    if (__builtin_expect(all(below), 1)) continue;
    for (int64_t r = 0; r < TopKParams::kBlockRows; ++r) {
      const float bound = upper[i][r / kLanes][r % kLanes] + bias_slack;
      if (bound < queries[i].threshold) continue;
      const int64_t row = block * TopKParams::kBlockRows + r;
      const float lower = bound - 2 * (bias_slack + slack[i] * (p.scales ? p.scales[row] : 1));
      queries[i].add(p.order ? p.order[row] : row, lower - std::abs(lower) * kScoreSlack - kTiny, bound);
    }
  }
}

static void top_k_search(const TopKParams& p, char* scratch) {
  constexpr int64_t kGroup = TopKParams::kGroupQueries, kChunkBytes = 16384;  // half of an L1 cache
  const int64_t row_bytes = p.codes ? 4 * p.groups_of_dims() : 4 * p.dim, bytes = TopKQuery::scratch_bytes(p);
  const int64_t chunk = std::max<int64_t>(1, kChunkBytes / (row_bytes * TopKParams::kBlockRows));
  for (int64_t item; p.queue->take(item);) {
    const int64_t group = item / p.parts, part = item % p.parts, first = group * kGroup;
    const int64_t begin = p.blocks() * part / p.parts, end = p.blocks() * (part + 1) / p.parts;
    const int64_t size = std::min(kGroup, p.num_queries - first);
    alignas(TopKQuery) char memory[kGroup * sizeof(TopKQuery)];
    TopKQuery* const queries = reinterpret_cast<TopKQuery*>(memory);
    for (int64_t i = 0; i < size; ++i) new (queries + i) TopKQuery(p, first + i, part, scratch + i * bytes);
    for (int64_t block = begin; block < end; block += chunk)
      for (int64_t i = 0; i < size; i += 2)
        for (int64_t b = block; b < std::min(block + chunk, end); ++b) {
          if (i + 1 < size) {
            search_block<2>(p, queries + i, b);
          } else {
            search_block<1>(p, queries + i, b);
          }
        }
    for (int64_t i = 0; i < size; ++i) queries[i].finish();
  }
}

static int64_t top_k_scratch(const TopKParams& p) { return TopKParams::kGroupQueries * TopKQuery::scratch_bytes(p); }

template <typename T>
static constexpr TopKKernels kKernels{top_k_scratch, top_k_search};
