// Parameters and entry point of dropout, which is linear: its gradient is the same op.
#pragma once

#include "kernels/common/params.h"

namespace recgrela::cuda {

struct DropoutParams {
  DType dtype = DType::kFloat32;
  Dropout dropout;
  int64_t numel = 0;  // up to 2^32
  // Contiguous and aligned to 16 bytes.
  const void* x = nullptr;
  void* y = nullptr;
};

cudaError_t dropout(const DropoutParams& params, cudaStream_t stream);

}  // namespace recgrela::cuda
