// Copies of rows and weights to shared memory, as operands of tensor-core products.
//
// Rows in shared memory are kStagePad elements further apart than their width, so that the loads of a warp by
// load_operand fall into different banks.
#pragma once

#include "kernels/common/device.cuh"
#include "kernels/common/params.h"

namespace recgrela::cuda {

constexpr int kStagePad = 8;

// Distance of rows in shared memory, in elements.
inline __host__ __device__ constexpr int stage_stride(int width) { return width + kStagePad; }

// Starts copies of columns `column` .. `column` + `width` of the rows `first` .. `first` + `count` of a matrix to
// shared memory. Rows from `num_rows` on become zeros. All threads of the block call it; see copy_async16 for when the
// rows may be read. Rows in memory are aligned to 16 bytes, and `width` and `column` are multiples of 16.
template <typename E>
__device__ void stage_rows(E* shared, const RowMatrix& rows, int64_t first, int count, int64_t num_rows, int column,
                           int width) {
  constexpr int kVector = 16 / sizeof(E);
  const E* const source = static_cast<const E*>(rows.data) + column;
  const int vectors = width / kVector, stride = stage_stride(width);
  for (int i = threadIdx.x; i < count * vectors; i += blockDim.x) {
    const int row = i / vectors, c = i % vectors * kVector;
    const bool valid = first + row < num_rows;
    copy_async16(shared + row * stride + c, source + (valid ? first + row : 0) * rows.stride + c, valid);
  }
}

// Copies a block of a float32 matrix to shared memory, rounded to E: shared[i][j] = weights[i * stride + j]. `stride`
// and `width` are multiples of 4, and the weights are aligned to 16 bytes. All threads of the block call it; a barrier
// must follow.
template <typename E>
__device__ void stage_weights(E* shared, const float* weights, int64_t stride, int count, int width) {
  const int vectors = width / 4;
  for (int i = threadIdx.x; i < count * vectors; i += blockDim.x) {
    const int row = i / vectors, c = i % vectors * 4;
    const float4 w = *reinterpret_cast<const float4*>(weights + row * stride + c);
    E* const to = shared + row * stage_stride(width) + c;
    if constexpr (sizeof(E) == 4) {
      *reinterpret_cast<float4*>(to) = w;
    } else {
      *reinterpret_cast<uint2*>(to) = make_uint2(pack2<E>(w.x, w.y), pack2<E>(w.z, w.w));
    }
  }
}

}  // namespace recgrela::cuda
