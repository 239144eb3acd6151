// Parameters and entry point of selective_scan_step: one row of each of M sequences, I channels with N states each.
#pragma once

#include "kernels/common/params.h"

namespace recgrela::cuda {

struct SelectiveScanStepParams {
  DType dtype = DType::kFloat32;
  int64_t batch = 0;     // M
  int64_t channels = 0;  // I
  int num_states = 0;    // N
  bool delta_softplus = false;

  RowMatrix u, delta, z;              // [M, I] of dtype; z may be absent
  RowMatrix B, C;                     // [M, N] of dtype
  const float* A = nullptr;           // [I, N]
  const float* D = nullptr;           // [I]; null: none
  const float* delta_bias = nullptr;  // [I]; null: none
  float* state = nullptr;             // [M, I, N], updated
  int64_t state_stride = 0;           // elements from one sequence to the next
  RowMatrix y;                        // [M, I] of dtype
};

cudaError_t selective_scan_step(const SelectiveScanStepParams& params, cudaStream_t stream);

}  // namespace recgrela::cuda
