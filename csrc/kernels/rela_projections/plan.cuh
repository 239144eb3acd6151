// Plan of a rela_projections call: its parameters, how rows are divided among blocks, and weights in shared memory.
#pragma once

#include "kernels/common/host.cuh"
#include "kernels/common/stage.cuh"
#include "kernels/rela_projections/params.h"

namespace recgrela::cuda {

constexpr int kProjectionsThreads = 256, kProjectionsWarps = kProjectionsThreads / 32;
constexpr int kProjectionsBlocks = 2;    // that a multiprocessor runs at once
constexpr int kProjectionsTiles = 4;     // tiles of D, padded with zeros
constexpr int kProjectionsColumns = 64;  // the columns of these tiles

struct RelaProjectionsPlan : RelaProjectionsParams {
  int rows = 0;        // T
  int row_tiles = 0;   // tiles of rows: 16 rows of a warp in the forward, 64 rows of a block in the backward
  int row_blocks = 0;  // blocks, which iterate over tiles
  float inverse_width = 0;
  // Gradients of the weights in_weight, gate_weight if there is a gate and qk_weight, of their biases in the same
  // order, and of norm_weight and norm_bias; backward only.
  float* partials = nullptr;  // [row_blocks, num_gradients]
  int num_gradients = 0;

  __host__ __device__ bool has_gate() const { return gate_weight != nullptr; }
  // Outputs of all projections.
  __host__ __device__ int all_outputs() const { return width * (has_gate() ? 2 : 1) + outputs; }
};

// Bytes before an element. Strides are below 2^26, so that the offset of a row is one product of 32-bit numbers.
template <typename T>
__device__ uint64_t offset_of(const RowMatrix& rows, int row, uint32_t column) {
  const uint32_t stride = static_cast<uint32_t>(rows.stride) * static_cast<uint32_t>(sizeof(T));
  return uint64_t{static_cast<uint32_t>(row)} * stride + column * static_cast<uint32_t>(sizeof(T));
}
template <typename T>
__device__ T* address(const RowMatrix& rows, int row, uint32_t column) {
  return reinterpret_cast<T*>(static_cast<char*>(rows.data) + offset_of<T>(rows, row, column));
}

// A lane holds the columns c, c + 1, c + 8 and c + 9 of a tile, for c = 2 (l % 4). A permutation of columns makes them
// adjacent in memory: column i of tile t is column float_column(t, i), four adjacent float32 numbers of a lane, or
// half_column(t, i), eight adjacent 16-bit numbers of a lane, from two tiles in turn, so that their registers are not
// those of an operand, which have another order.
inline __device__ int float_column(int tile, int i) { return tile * 16 + i % 8 / 2 * 4 + i / 8 * 2 + i % 2; }
inline __device__ int half_column(int tile, int i) {
  return tile / 2 * 32 + i % 8 / 2 * 8 + (i / 8 * 2 + i % 2) * 2 + tile % 2;
}

constexpr int kRightVectors = 32;  // vectors of 16 bytes of an operand B in shared memory

// Stages `count` operands B in the order of mma's registers. value(tile, i, k) is element [i][k] of an operand. All
// threads of the block call it.
template <typename E, typename Value>
__device__ void stage_operands(uint4* to, int count, Value value) {
  const int lane = threadIdx.x % 32;
#pragma unroll 4
  for (int tile = threadIdx.x / 32; tile < count; tile += kProjectionsWarps) {
    Acc m;
#pragma unroll
    for (int k = 0; k < 8; ++k) m.x[k / 4][k % 4] = value(tile, tile_row(lane, k % 4), tile_col(lane, k / 4, k));
    const Operand<E> b = to_operand<E>(m);
    to[tile * kRightVectors + lane] = make_uint4(b.r[0], b.r[2], b.r[1], b.r[3]);
  }
}
// d += A B^T, with such an operand B.
template <typename E>
__device__ void mma_right(Acc& d, const Operand<E>& a, const uint4* b) {
  const uint4 r = b[threadIdx.x % 32];
  const uint32_t first[2] = {r.x, r.y}, second[2] = {r.z, r.w};
  mma16816<E>(d.x[0], a.r, first);
  mma16816<E>(d.x[1], a.r, second);
}

// Element [row][column] of a weight [rows, columns]; 0 outside.
inline __device__ float weight_at(const float* weight, int rows, int columns, int row, int column) {
  return row < rows && column < columns ? weight[row * columns + column] : 0.f;
}

// Kernels of one element type.
template <typename E>
struct RelaProjectionsKernels {
  static cudaError_t forward(RelaProjectionsPlan& plan, cudaStream_t stream);
  // Divides the work of the backward. Returns false if the device has too little shared memory for it.
  static bool plan_backward(RelaProjectionsPlan& plan);
  // Stores d_x and the partial sums of the other gradients.
  static cudaError_t backward(const RelaProjectionsPlan& plan, cudaStream_t stream);
};

}  // namespace recgrela::cuda
