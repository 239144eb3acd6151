// CPU kernels as references in float64.
#pragma once

#include "cpu/common.h"
#include "tests/tensor.h"

namespace recgrela::tests {

// Runs the forward and the backward on one thread.
template <typename Kernels, typename Params>
void run_on_cpu(const Kernels& kernels, Params& p) {
  for (bool backward : {false, true}) {
    cpu::WorkQueue queue(p.num_items());
    p.queue = &queue;
    const Memory scratch(kernels.scratch(p, backward) * sizeof(double));
    (backward ? kernels.backward : kernels.forward)(p, reinterpret_cast<double*>(scratch.data));
  }
}

// Sum of partial results of `size` elements each.
inline Doubles sum_of_partials(const Doubles& partials, int64_t size) {
  Doubles sum(size);
  for (size_t i = 0; i < partials.size(); ++i) sum[i % sum.size()] += partials[i];
  return sum;
}

}  // namespace recgrela::tests
