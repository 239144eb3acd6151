// causal_conv1d_step: one sequence at a time, in one pass over its history.

#include "conv_step.inl"

template <typename T>
static int64_t causal_conv1d_step_scratch(const CausalConv1dStepParams<T>& p, bool) {
  return ConvStep<T>::scratch(p.kernel_size, p.channels);
}

template <typename T>
static void causal_conv1d_step_worker(const CausalConv1dStepParams<T>& p, T* scratch) {
  const ConvStep<T> conv(p.kernel_size, p.channels, p.weight, p.bias, scratch);
  with_lanes<T>(p.channels, [&](auto lanes) {
    constexpr int N = decltype(lanes)::value;
    for (int64_t group; p.queue->take(group);)
      for (int64_t b = p.groups.begin(group); b < p.groups.end(group); ++b)
        for (int64_t i = 0; i < p.channels; i += N) {
          Vec<T, N> v = conv.template next<N>(load<T, N>(p.x.row(b) + i), p.history.row(b), i);
          if (p.silu) v *= sigmoid<T, N>(v);
          store<T, N>(p.y.row(b) + i, v);
        }
  });
}

template <typename T>
static constexpr CausalConv1dStepKernels<T> kKernels{causal_conv1d_step_scratch<T>, causal_conv1d_step_worker<T>,
                                                     nullptr};
