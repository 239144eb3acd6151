// The sum and norm of rows, shared by add_norm and rela_block_step. A row stays in registers from the sum to the norm
// if it is K whole vectors, and in the cache otherwise (K = 0). The backward computes both again.

#include "activation.inl"

template <typename T, int K>
class AddNormWorker {
  static constexpr int N = RECGRELA_VECTOR_BYTES / sizeof(T);
  using V = Vec<T, N>;
  using RowDrop = Drop<T, N, K != 0 && K * N % kDrawBlock == 0>;
  // The vectors of a row: an array of its own, or one of the scratch memory's.
  struct Row {
    V own[K > 0 ? K : 1];
    V* const shared;
    __attribute__((always_inline)) V& operator[](int64_t k) { return K > 0 ? own[k] : shared[k]; }
  };

 public:
  AddNormWorker(const AddNormParams<T>& p, T* scratch)
      : p_(p),
        scratch_(reinterpret_cast<V*>(scratch)),
        vectors_(ceil_div(p.width, N)),
        inverse_width_(T(1) / p.width) {}

  void forward() {
    each_group([&](int64_t, int64_t begin, int64_t end) { forward(begin, end); });
  }

  void forward(int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      Row s{{}, scratch_};
      add(row, s);
      if (p_.residual.data) {
        for (int64_t k = 0; k < vectors(); ++k) put(p_.residual.row(row), k, s[k]);
      }
      const T factor = normalize(s);
      for (int64_t k = 0; k < vectors(); ++k)
        put(p_.normed.row(row), k, s[k] * factor * get(p_.weight, k) + get(p_.bias, k));
    }
  }

  void backward() {
    each_group([&](int64_t group, int64_t begin, int64_t end) {
      Row d_weight{{}, scratch_ + 2 * vectors_}, d_bias{{}, scratch_ + 3 * vectors_};
      for (int64_t k = 0; k < vectors(); ++k) d_weight[k] = d_bias[k] = V{};
      for (int64_t row = begin; row < end; ++row) backward(row, d_weight, d_bias);
      for (int64_t k = 0; k < vectors(); ++k) {
        put(p_.d_weight + group * p_.width, k, d_weight[k]);
        put(p_.d_bias + group * p_.width, k, d_bias[k]);
      }
    });
  }

 private:
  int64_t vectors() const { return K > 0 ? K : vectors_; }
  V get(const T* row, int64_t k) const {
    return K > 0 ? load<T, N>(row + k * N) : load_some<T, N>(row + k * N, p_.width - k * N);
  }
  void put(T* row, int64_t k, V v) const {
    if constexpr (K > 0) {
      store<T, N>(row + k * N, v);
    } else {
      store_some<T, N>(row + k * N, v, p_.width - k * N);
    }
  }

  template <typename F>
  void each_group(F&& f) {
    const Groups groups = p_.groups();
    for (int64_t group; p_.queue->take(group);) {
      f(group, groups.begin(group) * p_.kBlockRows, std::min(groups.end(group) * p_.kBlockRows, p_.num_rows));
    }
  }

  T path_factor(int64_t row) const {
    if (p_.drop_path.threshold == 0) return T(1);
    return Drop<T, 1>(p_.drop_path, p_.sequence ? p_.sequence[row] : row, 0)(splat<T, 1>(T(1)))[0];
  }

  // Computes the sum of the residual stream and its branch.
  __attribute__((always_inline)) void add(int64_t row, Row& s) const {
    const T* const x = p_.x.row(row);
    for (int64_t k = 0; k < vectors(); ++k) s[k] = get(x, k);
    if (!p_.z.data) return;
    const T* const z = p_.z.row(row);
    const T path = path_factor(row);
    for (int64_t k = 0; k < vectors(); ++k) s[k] += RowDrop(p_.dropout, row * p_.width, k * N)(get(z, k)) * path;
  }

  // Subtracts the row's mean and returns 1 / sqrt(variance + eps). Lanes past the row's end hold zeros.
  __attribute__((always_inline)) T normalize(Row& s) const {
    V total{}, squares{};
    for (int64_t k = 0; k < vectors(); ++k) total += s[k];
    const T mean = sum<T, N>(total) * inverse_width_;
    for (int64_t k = 0; k < vectors(); ++k) s[k] -= mean;
    if constexpr (K == 0) {
      for (int64_t i = p_.width; i < vectors() * N; ++i) s[i / N][i % N] = T(0);
    }
    for (int64_t k = 0; k < vectors(); ++k) squares += s[k] * s[k];
    return T(1) / std::sqrt(sum<T, N>(squares) * inverse_width_ + p_.eps);
  }

  __attribute__((always_inline)) void backward(int64_t row, Row& d_weight, Row& d_bias) const {
    Row s{{}, scratch_}, d{{}, scratch_ + vectors_};
    add(row, s);
    const T factor = normalize(s);
    const T* const d_residual = p_.d_residual.data ? p_.d_residual.row(row) : nullptr;
    const T* const d_normed = p_.d_normed.data ? p_.d_normed.row(row) : nullptr;
    for (int64_t k = 0; k < vectors(); ++k) {
      d[k] = d_normed ? get(d_normed, k) : V{};
      if (p_.post_norm && d_residual) d[k] += get(d_residual, k);
    }
    V sums{}, products{};
    for (int64_t k = 0; k < vectors(); ++k) {
      const V x = s[k] * factor;
      d_weight[k] += d[k] * x, d_bias[k] += d[k];
      d[k] *= get(p_.weight, k);
      sums += d[k], products += d[k] * x;
    }
    const T mean = sum<T, N>(sums) * inverse_width_, slope = sum<T, N>(products) * inverse_width_ * factor;
    for (int64_t k = 0; k < vectors(); ++k) {
      d[k] = (d[k] - mean - s[k] * slope) * factor;
      if (!p_.post_norm && d_residual) d[k] += get(d_residual, k);
      put(p_.d_x.row(row), k, d[k]);
    }
    if (!p_.d_z.data) return;
    const T path = path_factor(row);
    for (int64_t k = 0; k < vectors(); ++k)
      put(p_.d_z.row(row), k, RowDrop(p_.dropout, row * p_.width, k * N)(d[k]) * path);
  }

  const AddNormParams<T>& p_;
  V* const scratch_;
  const int64_t vectors_;
  const T inverse_width_;
};

// Calls f with the worker for the rows' width.
template <typename T, typename F>
static void with_add_norm_worker(const AddNormParams<T>& p, T* scratch, F&& f) {
  constexpr int N = RECGRELA_VECTOR_BYTES / sizeof(T);
  switch (p.width % N == 0 ? p.width / N : 0) {
    case 2:
      return f(AddNormWorker<T, 2>(p, scratch));
    case 4:
      return f(AddNormWorker<T, 4>(p, scratch));
    case 8:
      return f(AddNormWorker<T, 8>(p, scratch));
    default:
      return f(AddNormWorker<T, 0>(p, scratch));
  }
}

template <typename T>
static int64_t add_norm_scratch(const AddNormParams<T>& p, bool) {
  return 4 * round_up(p.width, RECGRELA_VECTOR_BYTES / sizeof(T));
}
