// Plan of a linear_scan call: its parameters and how segments and channels are divided among threads.
#pragma once

#include "kernels/common/packed.cuh"
#include "kernels/common/segments.cuh"
#include "kernels/linear_scan/params.h"
#include "kernels/linear_scan/tuning.h"

namespace recgrela::cuda {

constexpr int kScanThreads = RECGRELA_LINEAR_SCAN_THREADS;
constexpr int kScanBlocks = 32 * RECGRELA_LINEAR_SCAN_WARPS / kScanThreads;  // per multiprocessor

// Numbers of a row that a thread processes; a complex number is two floats. Two numbers fill whole sectors of memory
// and leave a warp for each sequence of 64 channels.
template <bool kComplex>
constexpr int kScanGroup = kComplex ? 4 : 2;

// Row strides are in floats even for complex numbers. A block processes block_groups groups of `runs` consecutive
// segments.
struct ScanPlan : LinearScanParams {
  SegmentPlan segments;
  int64_t width = 0;          // floats of a row
  int groups = 0;             // of floats
  int columns = 0;            // blocks that cover the groups
  int block_groups = 0;       // groups per block
  int runs = 0;               // segments per block
  int64_t row_blocks = 0;     // blocks that cover the slots
  int carry_lanes = 1;        // lanes that carry a channel's state along a sequence: a power of two up to 32
  bool aligned = false;       // every row of every matrix is aligned to a group
  float* states = nullptr;    // [slots, width]: final states from a zero state, then initial states
  float* products = nullptr;  // [slots, width]: products of the coefficients
  float* partials = nullptr;  // [row_blocks, width]: gradient of constant coefficients; backward only
};

// state = a * state + x, or with the conjugate of a.
template <bool kComplex, bool kConjugate, int N>
__device__ void advance(const float (&a)[N], const float (&x)[N], float (&state)[N]) {
  if constexpr (kComplex) {
#pragma unroll
    for (int i = 0; i < N; i += 2) {
      const float re = state[i], im = state[i + 1], a_im = kConjugate ? -a[i + 1] : a[i + 1];
      state[i] = a[i] * re + (x[i] - a_im * im);
      state[i + 1] = a[i] * im + (x[i + 1] + a_im * re);
    }
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) state[i] = a[i] * state[i] + x[i];
  }
}

// Kernels of one element type, real or complex.
template <typename E, bool kComplex>
struct ScanKernels {
  // Computes the final state of each segment that starts from zero, and the product of its coefficients. Skips the last
  // segment in the direction of the scan.
  static cudaError_t sum_segments(const ScanPlan& plan, bool reverse, cudaStream_t stream);
  static cudaError_t forward(const ScanPlan& plan, cudaStream_t stream);
  // Stores the gradients. The gradient of constant coefficients is stored as partial sums.
  static cudaError_t backward(const ScanPlan& plan, cudaStream_t stream);
};

}  // namespace recgrela::cuda
