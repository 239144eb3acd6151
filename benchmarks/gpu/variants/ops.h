// Entry points of the operators whose variants are timed, under the same names.
#pragma once

#include "kernels/causal_conv1d/params.h"
#include "kernels/gated_rela/params.h"
#include "kernels/linear_scan/params.h"
#include "kernels/selective_scan/params.h"

namespace recgrela::variants {

struct gated_rela {
  using Params = cuda::GatedRelaParams;
  static size_t workspace(const Params& p, bool backward) {
    return backward ? cuda::gated_rela_backward_workspace(p) : cuda::gated_rela_forward_workspace(p);
  }
  static cudaError_t run(const Params& p, bool backward) {
    return backward ? cuda::gated_rela_backward(p, nullptr) : cuda::gated_rela_forward(p, nullptr);
  }
};

struct selective_scan {
  using Params = cuda::SelectiveScanParams;
  static size_t workspace(const Params& p, bool backward) {
    return backward ? cuda::selective_scan_backward_workspace(p) : cuda::selective_scan_forward_workspace(p);
  }
  static cudaError_t run(const Params& p, bool backward) {
    return backward ? cuda::selective_scan_backward(p, nullptr) : cuda::selective_scan_forward(p, nullptr);
  }
};

struct linear_scan {
  using Params = cuda::LinearScanParams;
  static size_t workspace(const Params& p, bool backward) {
    return backward ? cuda::linear_scan_backward_workspace(p) : cuda::linear_scan_forward_workspace(p);
  }
  static cudaError_t run(const Params& p, bool backward) {
    return backward ? cuda::linear_scan_backward(p, nullptr) : cuda::linear_scan_forward(p, nullptr);
  }
};

struct causal_conv1d {
  using Params = cuda::CausalConv1dParams;
  static size_t workspace(const Params& p, bool backward) {
    return backward ? cuda::causal_conv1d_backward_workspace(p) : 0;
  }
  static cudaError_t run(const Params& p, bool backward) {
    return backward ? cuda::causal_conv1d_backward(p, nullptr) : cuda::causal_conv1d_forward(p, nullptr);
  }
};

// Functions that the library of a variant exports.
template <typename Op>
struct Library {
  size_t (*workspace)(const typename Op::Params& p, bool backward);
  cudaError_t (*run)(const typename Op::Params& p, bool backward);
};

}  // namespace recgrela::variants
