// gated_rela_step: one sequence at a time.

#include "rela_step.inl"

template <typename T>
static void gated_rela_step_worker(const GatedRelaStepParams<T>& p, T* scratch) {
  with_lanes<T>(p.head_dim, [&](auto lanes) {
    constexpr int N = decltype(lanes)::value;
    if constexpr (N > 1) {  // head_dim is even
      const RelaStep<T, N> rela(p, scratch);
      for (int64_t group; p.queue->take(group);)
        for (int64_t b = p.groups.begin(group); b < p.groups.end(group); ++b) rela.step(b);
    }
  });
}

template <typename T>
static constexpr GatedRelaStepKernels<T> kKernels{RelaStep<T, 2>::scratch, gated_rela_step_worker<T>, nullptr};
