// Types that the parameters of every CUDA kernel share: plain pointers and sizes, no torch. Each operator declares its
// own parameters and entry points in <operator>/params.h. All pointers are to device memory, and no entry point waits
// for the device.
#pragma once

#include <cstddef>
#include <cstdint>

#ifdef RECGRELA_SIMT_HOST
#include "tests/simt/simt.h"
#else
#include <cuda_runtime.h>
#endif

namespace recgrela::cuda {

enum class DType { kFloat32, kFloat16, kBFloat16 };

inline int64_t size_of(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }

// A matrix with contiguous rows and any stride between them. A null pointer means that the matrix is absent.
struct RowMatrix {
  void* data = nullptr;
  int64_t stride = 0;  // elements from one row to the next
};

// Packed sequences: sequence b owns the rows offsets[b] .. offsets[b + 1] of every matrix.
struct Sequences {
  const void* offsets = nullptr;  // [B + 1], int64 or int32
  bool is_int64 = true;
  int64_t num_sequences = 0;  // B
  int64_t num_rows = 0;       // T
  int64_t max_length = 0;     // an upper bound on the length of a sequence; 0: T
};

// Dropout of elements whose random number, a hash of the seed and of the element's index, is below the threshold.
struct Dropout {
  const int64_t* seed = nullptr;  // null: no dropout
  uint32_t threshold = 0;
  float scale = 1.f;  // factor of the elements that are kept
};

}  // namespace recgrela::cuda
