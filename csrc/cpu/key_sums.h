// Kernels of key_sums on the CPU: final_kv_state from k and v alone, and d_k and d_v from d_final_kv_state.
#pragma once

#include "gated_rela.h"

namespace recgrela::cpu {

template <typename T>
const GatedRelaKernels<T>& key_sums_kernels();

}  // namespace recgrela::cpu
