// Host-side helpers of every operator: sizes, error propagation, and kernels by element type.
#pragma once

#include <type_traits>

#include "kernels/common/device.cuh"
#include "kernels/common/params.h"

namespace recgrela::cuda {

// Returns the error of a call from the calling function, unless it is cudaSuccess.
#define RECGRELA_RETURN_IF_ERROR(call)      \
  do {                                      \
    const cudaError_t error = (call);       \
    if (error != cudaSuccess) return error; \
  } while (false)

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Returns whether every row begins at a multiple of `bytes`.
inline bool is_aligned(const RowMatrix& rows, DType dtype, int64_t bytes) {
  return reinterpret_cast<uintptr_t>(rows.data) % bytes == 0 && rows.stride * size_of(dtype) % bytes == 0;
}

// Calls f(E{}) with the element type E of a dtype.
template <typename F>
cudaError_t dispatch_dtype(DType dtype, F f) {
  switch (dtype) {
    case DType::kFloat32:
      return f(float{});
    case DType::kFloat16:
      return f(fp16{});
    case DType::kBFloat16:
      return f(bf16{});
  }
  return cudaErrorInvalidValue;
}

// Calls f(std::integral_constant<int, value>{}) if `value` is one of kValues.
template <int... kValues, typename F>
cudaError_t dispatch_value(int value, F&& f) {
  cudaError_t error = cudaErrorInvalidValue;
  static_cast<void>(((value == kValues && (error = f(std::integral_constant<int, kValues>{}), true)) || ...));
  return error;
}

}  // namespace recgrela::cuda
