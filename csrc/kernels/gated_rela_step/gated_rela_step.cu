// gated_rela_step: a block computes one sequence. Its threads first compute the features of query and key, with their
// rotation, and add the key to z. Then each warp reads, updates and writes 32 columns of the states at a time: 8 lanes
// have 4 columns each, of 4 rows at once, so that a warp reads whole segments of memory.
//   S += R phi(k)^T v;   z += phi(k);   o = R phi(q) S / (phi(q) . z + n eps), with n rows so far
#include <algorithm>

#include "kernels/common/activations.cuh"
#include "kernels/common/conv_step.cuh"
#include "kernels/common/host.cuh"
#include "kernels/gated_rela_step/params.h"

namespace recgrela::cuda {
namespace {

constexpr int kWarp = 32, kMaxWarps = 8;
constexpr int kLaneColumns = 4, kColumnLanes = 8, kRowLanes = kWarp / kColumnLanes;
constexpr int kColumns = kLaneColumns * kColumnLanes;  // of a warp
constexpr int kBatch = 4;                              // rows that a lane loads before it stores the first

struct RelaStepPlan : GatedRelaStepParams {
  bool vectors = false;  // 4 columns of S are aligned to 16 bytes
};

// The row's features in shared memory, [D] each.
struct Features {
  float *query, *key;  // rotated
  float* products;     // phi(q) z, whose sum over a head is the denominator
  float* values;

  __device__ explicit Features(int width) {
    query = reinterpret_cast<float*>(dynamic_shared());
    key = query + width, products = key + width, values = products + width;
  }
};

inline __device__ void rotate_pair(float cos, float sin, float& a, float& b) {
  const float rotated = a * cos - b * sin;
  b = b * cos + a * sin;
  a = rotated;
}

template <typename E>
__device__ const E* row_of(const RowMatrix& rows, int64_t b) {
  return static_cast<const E*>(rows.data) + b * rows.stride;
}

// Computes the features of all channels, and adds the key to z. kv: the sequence's [H, d + 1, d].
template <typename E>
__device__ void compute_features(const RelaStepPlan& p, int64_t b, int64_t position, float* kv, const Features& f) {
  const E *const q = row_of<E>(p.q, b), *const k = row_of<E>(p.k, b), *const v = row_of<E>(p.v, b);
  const int width = p.num_heads * p.head_dim, d = p.head_dim;
#pragma unroll 1
  for (int c = 2 * static_cast<int>(threadIdx.x); c < width; c += 2 * static_cast<int>(blockDim.x)) {
    float q0 = phi(to_float(q[c])), q1 = phi(to_float(q[c + 1]));
    float k0 = phi(to_float(k[c])), k1 = phi(to_float(k[c + 1]));
    float* const z = kv + (c / d * (d + 1) + d) * d + c % d;
    const float z0 = z[0] + k0, z1 = z[1] + k1;
    z[0] = z0, z[1] = z1;
    f.products[c] = q0 * z0, f.products[c + 1] = q1 * z1;
    f.values[c] = to_float(v[c]), f.values[c + 1] = to_float(v[c + 1]);
    if (p.turns) {
      // The product wraps around at whole turns. Its upper half, as a signed number, is the angle in 2^-31 half turns.
      const uint64_t turn = static_cast<uint64_t>(position) * static_cast<uint64_t>(p.turns[c / 2]);
      float sin, cos;
      sincospif(static_cast<float>(static_cast<int32_t>(turn >> 32)) * 0x1p-31f, &sin, &cos);
      rotate_pair(cos, sin, q0, q1);
      rotate_pair(cos, sin, k0, k1);
    }
    f.query[c] = q0, f.query[c + 1] = q1;
    f.key[c] = k0, f.key[c + 1] = k1;
  }
}

inline __device__ void load_columns(const float* from, bool vectors, float (&out)[kLaneColumns]) {
  if (vectors) {
    const float4 x = *reinterpret_cast<const float4*>(from);
    out[0] = x.x, out[1] = x.y, out[2] = x.z, out[3] = x.w;
  } else {
#pragma unroll
    for (int i = 0; i < kLaneColumns; ++i) out[i] = from[i];
  }
}
inline __device__ void store_columns(float* to, bool vectors, const float (&values)[kLaneColumns]) {
  if (vectors) {
    *reinterpret_cast<float4*>(to) = make_float4(values[0], values[1], values[2], values[3]);
  } else {
#pragma unroll
    for (int i = 0; i < kLaneColumns; ++i) to[i] = values[i];
  }
}

// Updates the lane's 4 columns of S from channel c on, of every kRowLanes-th row. Adds its part of the numerators and
// of the denominator.
inline __device__ void update_columns(const RelaStepPlan& p, const Features& f, float* kv, int c, int row,
                                      float (&numerators)[kLaneColumns], float& denominator) {
  const int d = p.head_dim, first = c / d * d;  // of the head
  float* const S = kv + first * (d + 1) + c % d;
  float v[kLaneColumns];
#pragma unroll
  for (int i = 0; i < kLaneColumns; ++i) v[i] = f.values[c + i];
#pragma unroll 1
  for (int j0 = row; j0 < d; j0 += kBatch * kRowLanes) {
    float s[kBatch][kLaneColumns];
#pragma unroll
    for (int n = 0; n < kBatch; ++n) {
      const int j = j0 + n * kRowLanes;
      if (j < d) load_columns(S + j * d, p.vectors, s[n]);
    }
#pragma unroll
    for (int n = 0; n < kBatch; ++n) {
      const int j = j0 + n * kRowLanes;
      if (j >= d) continue;
      const float key = f.key[first + j], query = f.query[first + j];
#pragma unroll
      for (int i = 0; i < kLaneColumns; ++i) {
        s[n][i] += key * v[i];
        numerators[i] += query * s[n][i];
      }
      denominator += f.products[first + j];
      store_columns(S + j * d, p.vectors, s[n]);
    }
  }
}

template <typename E>
__global__ void __launch_bounds__(kWarp* kMaxWarps) gated_rela_step_kernel(const RelaStepPlan p) {
  const int64_t b = blockIdx.x, position = p.position[b * p.position_stride];
  const int width = p.num_heads * p.head_dim;
  const Features f(width);
  float* const kv = p.kv_state + b * p.kv_stride;
  compute_features<E>(p, b, position, kv, f);
  __syncthreads();  // every thread has read the position
  if (threadIdx.x == 0) p.position[b * p.position_stride] = position + 1;

  const int lane = static_cast<int>(threadIdx.x) % kWarp, row = lane / kColumnLanes;
#pragma unroll 1
  for (int base = static_cast<int>(threadIdx.x) / kWarp * kColumns; base < width;
       base += static_cast<int>(blockDim.x) / kWarp * kColumns) {
    const int c = base + lane % kColumnLanes * kLaneColumns;
    float numerators[kLaneColumns] = {}, denominator = 0.f;
    if (c < width) update_columns(p, f, kv, c, row, numerators, denominator);
#pragma unroll
    for (int lanes = kColumnLanes; lanes < kWarp; lanes *= 2) {
#pragma unroll
      for (float& x : numerators) x += __shfl_xor_sync(0xffffffffu, x, lanes);
      denominator += __shfl_xor_sync(0xffffffffu, denominator, lanes);
    }
    if (c >= width) continue;
    // Each lane stores one of the four channels, whose sums all row lanes have.
    const int channel = c + row;
    float y = row == 0 ? numerators[0] : row == 1 ? numerators[1] : row == 2 ? numerators[2] : numerators[3];
    y *= fast_reciprocal(denominator + p.eps * static_cast<float>(position + 1));
    if (p.kernel_size > 0) {
      E* const history = const_cast<E*>(row_of<E>(p.history, b)) + channel;
      const float shortcut = convolve_next(f.values[channel], history, width, p.conv_weight + channel * p.kernel_size,
                                           p.conv_bias[channel], p.kernel_size);
      y += shortcut * sigmoid(shortcut);
    }
    if (p.g.data) {
      const float g = to_float(row_of<E>(p.g, b)[channel]);
      y *= g * sigmoid(g);
    }
    const_cast<E*>(row_of<E>(p.y, b))[channel] = from_float<E>(y);
  }
}

}  // namespace

cudaError_t gated_rela_step(const GatedRelaStepParams& params, cudaStream_t stream) {
  RelaStepPlan p;
  static_cast<GatedRelaStepParams&>(p) = params;
  const int width = p.width();
  if (p.head_dim % 8 != 0 || width == 0) return cudaErrorInvalidValue;
  p.vectors = reinterpret_cast<uintptr_t>(p.kv_state) % 16 == 0 && p.kv_stride % 4 == 0;
  const int threads = kWarp * static_cast<int>(std::min<int64_t>(kMaxWarps, ceil_div(width, kColumns)));
  const size_t shared = 4 * sizeof(float) * width;
  return dispatch_dtype(p.dtype, [&](auto element) {
    return launch(gated_rela_step_kernel<decltype(element)>, p.batch, threads, shared, stream, p);
  });
}

}  // namespace recgrela::cuda
