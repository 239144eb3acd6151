// rela_block_step: a few rows at a time pass through the whole block, so that each weight is read once for them.

#include "add_norm_worker.inl"
#include "few_rows.inl"
#include "rela_step.inl"

// The memory of a thread: matrices of kBlockRows rows, and the memory of the parts.
template <typename T>
struct RelaBlockStepMemory {
  using Params = RelaBlockStepParams<T>;
  T* next;
  RowMatrix<T> normed, v, gate, qk, attended, sum, hidden;
  T* rest;

  // A multiple of the longest vector, so that rows are aligned.
  static int64_t stride_of(int64_t columns) { return round_up(columns, 64 / sizeof(T)); }
  static int64_t scratch(const Params& p, bool) {
    const int64_t width = stride_of(p.width());
    const int64_t parts = RelaStep<T, 2>::scratch(p.rela, false) + 4 * width;
    return Params::kBlockRows * (7 * width + stride_of(p.hidden_features)) + parts;
  }
  RelaBlockStepMemory(const Params& p, T* scratch) : next(scratch) {
    for (RowMatrix<T>* m : {&normed, &v, &gate, &attended, &sum}) *m = take(p.width());
    qk = take(2 * p.width()), hidden = take(p.hidden_features);
    rest = next;
  }
  RowMatrix<T> take(int64_t columns) {
    const int64_t stride = stride_of(columns);
    return {std::exchange(next, next + Params::kBlockRows * stride), stride};
  }
};

// The activation of the MLP. Not inlined, so that it exists once for all vectors of heads.
template <typename T>
__attribute__((noinline)) static void activate(Activation activation, int64_t n, int64_t columns, RowMatrix<T> rows) {
  with_activation(activation, [&](auto constant) {
    for (int64_t i = 0; i < n; ++i)
      activate_and_drop<T, decltype(constant)::value>(Dropout<T>{}, 0, columns, rows.row(i), rows.row(i));
  });
}

template <typename T, int N>
class RelaBlockStep {
 public:
  RelaBlockStep(const RelaBlockStepParams<T>& p, T* scratch)
      : p_(p), memory_(p, scratch), rela_(p.rela), step_(rela_, memory_.rest + 4 * memory_.stride_of(p.width())) {
    const auto& m = memory_;
    rela_.q = read(m.qk), rela_.k = {m.qk.data + p.width(), m.qk.stride};
    rela_.v = read(m.v);
    if (p.gate.weight.data) rela_.g = read(m.gate);
    rela_.y = m.attended;
  }

  void run(int64_t item) {
    const int64_t first = item * p_.kBlockRows, n = std::min(p_.kBlockRows, p_.num_rows - first);
    const int64_t width = p_.width(), hidden = p_.hidden_features;
    const auto& m = memory_;
    const RowMatrix<const T> x{p_.x.row(first), p_.x.stride};
    const RowMatrix<T> y{p_.y.row(first), p_.y.stride};

    normalize(n, x, {}, p_.norm1_weight, p_.norm1_bias, {});
    multiply(n, m.normed, width, p_.in, m.v, width);
    if (p_.gate.weight.data) multiply(n, m.normed, width, p_.gate, m.gate, width);
    multiply(n, m.v, width, p_.qk, m.qk, 2 * width);

    rela_.kv_state.data = p_.rela.kv_state.row(first), rela_.history.data = p_.rela.history.row(first);
    rela_.position.data = p_.rela.position.row(first);
    for (int64_t i = 0; i < n; ++i) step_.step(i);

    multiply(n, m.attended, width, p_.out, y, width);
    normalize(n, x, read(y), p_.norm2_weight, p_.norm2_bias, m.sum);
    multiply(n, m.normed, width, p_.up, m.hidden, hidden);
    activate(p_.activation, n, hidden, m.hidden);
    multiply(n, m.hidden, hidden, p_.down, y, width);
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j < width; ++j) y.row(i)[j] += m.sum.row(i)[j];
  }

 private:
  static RowMatrix<const T> read(const RowMatrix<T>& rows) { return {rows.data, rows.stride}; }
  static void multiply(int64_t n, const RowMatrix<T>& a, int64_t depth, const StepLayer<T>& layer,
                       const RowMatrix<T>& out, int64_t columns) {
    multiply_few(n, read(a), depth, layer.weight, layer.bias, out, columns);
  }

  // normed = LayerNorm(x + z), and the sum.
  void normalize(int64_t n, const RowMatrix<const T>& x, const RowMatrix<const T>& z, const T* weight, const T* bias,
                 const RowMatrix<T>& sum) {
    AddNormParams<T> p;
    p.num_rows = n, p.width = p_.width(), p.eps = p_.norm_eps;
    p.x = x, p.z = z, p.weight = weight, p.bias = bias;
    p.residual = sum, p.normed = memory_.normed;
    AddNormWorker<T, 0>(p, memory_.rest).forward(0, n);
  }

  const RelaBlockStepParams<T>& p_;
  const RelaBlockStepMemory<T> memory_;
  GatedRelaStepParams<T> rela_;
  const RelaStep<T, N> step_;
};

template <typename T>
static void rela_block_step_worker(const RelaBlockStepParams<T>& p, T* scratch) {
  with_lanes<T>(p.rela.head_dim, [&](auto lanes) {
    constexpr int N = decltype(lanes)::value;
    if constexpr (N > 1) {  // head_dim is even
      RelaBlockStep<T, N> block(p, scratch);
      for (int64_t item; p.queue->take(item);) block.run(item);
    }
  });
}

template <typename T>
static constexpr RelaBlockStepKernels<T> kKernels{RelaBlockStepMemory<T>::scratch, rela_block_step_worker<T>, nullptr};
