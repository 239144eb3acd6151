// The kernels of one instruction set. The including file names it, sets the width of its registers and
// switches the compiler to it; the standard headers come before that switch.

namespace recgrela::cpu::RECGRELA_ISA {

constexpr int64_t kChunk = 64;  // tokens: the operands of a head of width 16 fill the L1 cache

#include "vec.inl"
#include "conv.inl"
#include "causal_conv1d.inl"
#include "dropout.inl"
#include "gated_rela.inl"
#include "gemm.inl"
#include "key_sums.inl"
#include "linear_cross_entropy.inl"
#include "linear_scan.inl"
#include "mlp.inl"
#include "selective_scan.inl"

template <typename T>
Kernels<T> make_kernels() {
  return {{gated_rela_scratch<T>, gated_rela_worker<T, false>, gated_rela_worker<T, true>},
          {gated_rela_scratch<T>, key_sums_worker<T, false>, key_sums_worker<T, true>},
          {causal_conv1d_scratch<T>, causal_conv1d_worker<T, false>, causal_conv1d_worker<T, true>},
          {SelectiveScanOf<T>::scratch, selective_scan_worker<T, false>, selective_scan_worker<T, true>},
          linear_scan_worker<T, false>,
          linear_scan_worker<T, true>,
          {MlpBlock<T>::scratch, mlp_worker<T, false>, mlp_worker<T, true>},
          dropout_worker<T>,
          {CrossEntropy<T>::N, CrossEntropy<T>::kWidth, CrossEntropy<T>::scratch_elements,
           cross_entropy_worker<T, &CrossEntropy<T>::pack>, cross_entropy_worker<T, &CrossEntropy<T>::score>,
           cross_entropy_worker<T, &CrossEntropy<T>::exponentiate>, cross_entropy_worker<T, &CrossEntropy<T>::finish>,
           cross_entropy_worker<T, &CrossEntropy<T>::gradients>}};
}

template Kernels<float> make_kernels<float>();
template Kernels<double> make_kernels<double>();

}  // namespace recgrela::cpu::RECGRELA_ISA
