// Elements of selective_scan's backward: the lanes of a warp divide the rows and channels of each tile of 4 rows.
//
// Lane l has row l / 8 of a tile and adjacent channels. It computes the steps of a chunk and the gates of a tile before
// their scans, once for all states, and gradients of u, delta and z from the sums over the states after it.
#pragma once

#include "kernels/common/activations.cuh"
#include "kernels/selective_scan/backward_shape.cuh"
#include "kernels/selective_scan/plan.cuh"

namespace recgrela::cuda {

// Adjacent elements of a row, as in memory.
template <typename E, int kCount>
struct alignas(kCount * sizeof(E) < 16 ? kCount * sizeof(E) : 16) Adjacent {
  E x[kCount];
};

// Loads kCount adjacent floats, 4 at a time if there are as many, which must be aligned to their size.
template <int kCount>
__device__ void load_floats(const float* from, float (&out)[kCount]) {
  if constexpr (kCount == 1) {
    out[0] = *from;
  } else if constexpr (kCount == 2) {
    const float2 pair = *reinterpret_cast<const float2*>(from);
    out[0] = pair.x, out[1] = pair.y;
  } else {
#pragma unroll
    for (int i = 0; i < kCount; i += 4) {
      const float4 quad = *reinterpret_cast<const float4*>(from + i);
      out[i] = quad.x, out[i + 1] = quad.y, out[i + 2] = quad.z, out[i + 3] = quad.w;
    }
  }
}
template <int kCount>
__device__ void store_floats(float* to, const float (&values)[kCount]) {
  if constexpr (kCount == 1) {
    *to = values[0];
  } else if constexpr (kCount == 2) {
    *reinterpret_cast<float2*>(to) = make_float2(values[0], values[1]);
  } else {
#pragma unroll
    for (int i = 0; i < kCount; i += 4)
      *reinterpret_cast<float4*>(to + i) = make_float4(values[i], values[i + 1], values[i + 2], values[i + 3]);
  }
}

template <typename E, typename Shape>
struct BackwardElements {
  static constexpr int kElements = Shape::kElements, kLanes = Shape::kLanes, kWarpChannels = Shape::kWarpChannels;
  using Element = Adjacent<E, kElements>;
  // The thread's elements of a tile, as loaded.
  struct Rows {
    Element z, d_y;
  };
  // Those of a chunk.
  struct ChunkRows {
    Element u[kTiles], delta[kTiles];
  };

  const SelectivePlan& p;
  const int lane, first_channel;                              // first_channel: of the warp
  const int element;                                          // the thread's first channel, among those of the warp
  const int tile_offset;                                      // of its elements in a tile [kTileRows, kWarpChannels]
  const bool whole;                                           // all channels of the block exist, and rows are aligned
  float* const shared;                                        // arrays of the warp
  float *const step, *const delta_u, *const slope, *const u;  // [kChunkRows, kWarpChannels]; slope: of step by delta
  float* const grad;                                          // [kTileRows, kWarpChannels]
  float* const by_channel;          // [2, kTileRows, kLanes, kWarpChannels]: sums over the states by groups of states
  float *const D, *const bias;      // [kWarpChannels]
  float *const d_D, *const d_bias;  // sums of the thread's elements
  int64_t begin = 0;                // first row of the segment; other rows are counted from it
  int end = 0;                      // rows of the segment

  __device__ BackwardElements(const SelectivePlan& p, int column)
      : p(p),
        lane(threadIdx.x % 32),
        first_channel(column * p.backward_channels + static_cast<int>(threadIdx.x / 32) * kWarpChannels),
        element(lane % 8 / Shape::kParts * kElements),
        tile_offset(Shape::kParts == 1 ? lane * kElements : lane / 8 * kWarpChannels + element),
        whole(p.rows_aligned && int64_t{column + 1} * p.backward_channels <= p.channels),
        shared(reinterpret_cast<float*>(dynamic_shared()) + Shape::kStageSize + threadIdx.x / 32 * Shape::kWarpSize),
        step(shared + Shape::kChunkAt),
        delta_u(step + Shape::kChunkSize),
        slope(delta_u + Shape::kChunkSize),
        u(slope + Shape::kChunkSize),
        grad(u + Shape::kChunkSize),
        by_channel(shared + Shape::kByChannelAt),
        D(shared + Shape::kVectorsAt),
        bias(D + kWarpChannels),
        d_D(shared + Shape::kTotalsAt + lane * kElements),
        d_bias(d_D + 32 * kElements) {
    for (int i = lane; i < kWarpChannels; i += 32) {
      const bool exists = first_channel + i < p.channels;
      D[i] = exists && p.D ? p.D[first_channel + i] : 0.f;
      bias[i] = exists && p.delta_bias ? p.delta_bias[first_channel + i] : 0.f;
    }
#pragma unroll
    for (int k = 0; k < kElements; ++k) d_D[k] = d_bias[k] = 0.f;
    __syncwarp();
  }

  // Thread's elements of a row. Products with a stride, which has 31 bits, take few instructions.
  __device__ E* elements_of(const RowMatrix& rows, int64_t row) const {
    return static_cast<E*>(rows.data) +
           (row * static_cast<uint32_t>(rows.stride) + static_cast<uint32_t>(computed_here(first_channel + element)));
  }
  // Elements of the thread that exist.
  __device__ int valid_elements() const {
    return static_cast<int>(p.channels) - computed_here(first_channel + element);
  }
  __device__ void load_some(const E* from, Element& out) const {
    const int valid = valid_elements();
#pragma unroll
    for (int k = 0; k < kElements; ++k) out.x[k] = k < valid ? from[k] : from_float<E>(0.f);
  }
  __device__ void store_elements(const RowMatrix& rows, int row, const float (&values)[kElements]) const {
    E* const to = elements_of(rows, begin + row);
    if (whole) {
      Element all;
#pragma unroll
      for (int k = 0; k < kElements; ++k) all.x[k] = from_float<E>(values[k]);
      *reinterpret_cast<Element*>(to) = all;
    } else {
      const int valid = valid_elements();
#pragma unroll
      for (int k = 0; k < kElements; ++k)
        if (k < valid) to[k] = from_float<E>(values[k]);
    }
  }
  // Loads the thread's elements of a chunk. An address is that of the first tile's row plus a product of 32 bits.
  __device__ void load_chunk(int row0, ChunkRows& rows) const {
    const int first = min(row0 + lane / 8, end - 1), last = end - 1 - first;
    const E *const u = elements_of(p.u, begin + first), *const delta = elements_of(p.delta, begin + first);
    const int u_stride = static_cast<int>(p.u.stride), delta_stride = static_cast<int>(p.delta.stride);
    if (whole) {
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
        const int row = min(t * kTileRows, last);
        rows.u[t] = *reinterpret_cast<const Element*>(u + multiply_wide(row, u_stride));
        rows.delta[t] = *reinterpret_cast<const Element*>(delta + multiply_wide(row, delta_stride));
      }
    } else {
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
        const int row = min(t * kTileRows, last);
        load_some(u + multiply_wide(row, u_stride), rows.u[t]);
        load_some(delta + multiply_wide(row, delta_stride), rows.delta[t]);
      }
    }
  }
  // Loads the thread's elements of a tile; those of rows from `end` on are those of the last row.
  __device__ void load_rows(int row0, Rows& rows) const {
    const int64_t row = begin + min(row0 + lane / 8, end - 1);
    const E* const d_y = elements_of(p.d_y, row);
    const E* const z = elements_of(p.z.data ? p.z : p.d_y, row);  // a condition on the load takes more registers
    if (whole) {
      rows.d_y = *reinterpret_cast<const Element*>(d_y), rows.z = *reinterpret_cast<const Element*>(z);
    } else {
      load_some(d_y, rows.d_y), load_some(z, rows.z);
    }
  }

  // Whether the thread's elements of a row exist; threads that repeat others' elements do not store them.
  __device__ bool stores_row(int row) const { return row < end && lane % Shape::kParts == 0; }
  // Clears elements of a row that do not exist, or whose channel does not.
  __device__ void clear_absent(int row0, float (&values)[kElements]) const {
    const int valid = valid_elements();
#pragma unroll
    for (int k = 0; k < kElements; ++k)
      if (k >= valid || row0 + lane / 8 >= end) values[k] = 0.f;
  }
  __device__ bool all_exist(int row0, int rows) const { return whole && row0 + rows <= end; }

  // Computes the steps of a chunk. Rows from `end` on and channels that do not exist leave states as they are.
  __device__ void prepare_chunk(const ChunkRows& rows, int row0) const {
    float biases[kElements];
    load_floats<kElements>(bias + element, biases);
    float steps[kTiles][kElements], slopes[kTiles][kElements];
#pragma unroll
    for (int t = 0; t < kTiles; ++t)
#pragma unroll
      for (int k = 0; k < kElements; ++k) steps[t][k] = to_float(rows.delta[t].x[k]) + biases[k], slopes[t][k] = 1.f;
    if (p.delta_softplus) {
#pragma unroll
      for (int t = 0; t < kTiles; ++t)
#pragma unroll
        for (int k = 0; k < kElements; ++k) slopes[t][k] = sigmoid(steps[t][k]), steps[t][k] = softplus(steps[t][k]);
    }
    if (!all_exist(row0, kChunkRows)) {
#pragma unroll
      for (int t = 0; t < kTiles; ++t) clear_absent(row0 + t * kTileRows, steps[t]);
    }
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      float delta_us[kElements], us[kElements];
#pragma unroll
      for (int k = 0; k < kElements; ++k) us[k] = to_float(rows.u[t].x[k]), delta_us[k] = steps[t][k] * us[k];
      if (lane % Shape::kParts == 0) {
        const int offset = t * Shape::kTileSize + tile_offset;
        store_floats<kElements>(step + offset, steps[t]), store_floats<kElements>(delta_u + offset, delta_us);
        store_floats<kElements>(slope + offset, slopes[t]), store_floats<kElements>(u + offset, us);
      }
    }
    __syncwarp();
  }
  // Computes the gates of a tile, and gradients of z but for the factor y. Rows from `end` on and channels that do not
  // exist leave gradients as they are.
  __device__ void prepare_tile(const Rows& rows, int row0, float (&d_z)[kElements]) const {
    float grads[kElements];
#pragma unroll
    for (int k = 0; k < kElements; ++k) grads[k] = to_float(rows.d_y.x[k]), d_z[k] = 0.f;
    if (p.z.data) {
#pragma unroll
      for (int k = 0; k < kElements; ++k) {
        const float z = to_float(rows.z.x[k]), s = sigmoid(z), gate = z * s;
        d_z[k] = grads[k] * silu_grad(s, gate);
        grads[k] *= gate;
      }
    }
    if (!all_exist(row0, kTileRows)) clear_absent(row0, grads);
    if (lane % Shape::kParts == 0) store_floats<kElements>(grad + tile_offset, grads);
    __syncwarp();
  }

  // Sums over the states of the thread's elements.
  __device__ void sum_by_channel(int kind, float (&out)[kElements]) const {
    constexpr int kShare = kLanes / Shape::kParts;
    const int part = lane % Shape::kParts;
    const float* const from =
        by_channel + kind * Shape::kByChannelSize + (lane / 8 * kLanes + part * kShare) * kWarpChannels + element;
#pragma unroll
    for (int g = 0; g < kShare; ++g) {
      float values[kElements];
      load_floats<kElements>(from + g * kWarpChannels, values);
#pragma unroll
      for (int k = 0; k < kElements; ++k) out[k] = g == 0 ? values[k] : out[k] + values[k];
    }
#pragma unroll
    for (int offset = Shape::kParts / 2; offset > 0; offset /= 2)
#pragma unroll
      for (int k = 0; k < kElements; ++k) out[k] += __shfl_xor_sync(0xffffffffu, out[k], offset);
  }

  // Stores the gradient of z after the first half of the scan of tile t, whose sums of kind 0 are y without D u.
  __device__ void store_gate_gradient(int t, int row0, const float (&factors)[kElements]) const {
    float y[kElements], d_z[kElements], skip[kElements], us[kElements];
    sum_by_channel(0, y);
    load_floats<kElements>(u + t * Shape::kTileSize + tile_offset, us), load_floats<kElements>(D + element, skip);
#pragma unroll
    for (int k = 0; k < kElements; ++k) d_z[k] = factors[k] * (y[k] + skip[k] * us[k]);
    if (stores_row(row0 + lane / 8)) store_elements(p.d_z, row0 + lane / 8, d_z);
  }
  // Stores the gradients of u and delta after the scan of tile t, whose sums are the gradient of delta_u and, of kind
  // 1, that of the step by the decays, divided by log(2). Adds the gradients of D and delta_bias.
  __device__ void store_gradients(int t, int row0) const {
    const int offset = t * Shape::kTileSize + tile_offset;
    float d_delta_u[kElements], d_step[kElements], d_u[kElements], d_delta[kElements];
    float us[kElements], steps[kElements], slopes[kElements], grads[kElements], skip[kElements];
    sum_by_channel(0, d_delta_u), sum_by_channel(1, d_step);
    load_floats<kElements>(u + offset, us), load_floats<kElements>(step + offset, steps);
    load_floats<kElements>(slope + offset, slopes);
    load_floats<kElements>(grad + tile_offset, grads), load_floats<kElements>(D + element, skip);
#pragma unroll
    for (int k = 0; k < kElements; ++k) {
      d_u[k] = skip[k] * grads[k] + steps[k] * d_delta_u[k];
      d_delta[k] = (us[k] * d_delta_u[k] + kLn2 * d_step[k]) * slopes[k];
    }
    if (!stores_row(row0 + lane / 8)) return;
    store_elements(p.d_u, row0 + lane / 8, d_u), store_elements(p.d_delta, row0 + lane / 8, d_delta);
    float sum_D[kElements], sum_bias[kElements];
    load_floats<kElements>(d_D, sum_D), load_floats<kElements>(d_bias, sum_bias);
#pragma unroll
    for (int k = 0; k < kElements; ++k) sum_D[k] += grads[k] * us[k], sum_bias[k] += d_delta[k];
    store_floats<kElements>(d_D, sum_D), store_floats<kElements>(d_bias, sum_bias);
  }

  // Stores the partial sums of the gradients of D and delta_bias, after the last segment.
  __device__ void store_totals(int64_t persistent_block) const {
    const int64_t i = persistent_block * p.channels + first_channel + element;
#pragma unroll
    for (int k = 0; k < kElements; ++k) {
      const float sum_D = row_sum(d_D[k]), sum_bias = row_sum(d_bias[k]);
      if (lane >= 8 || lane % Shape::kParts != 0 || k >= valid_elements()) continue;
      if (p.d_D) p.d_D_partials[i + k] = sum_D;
      if (p.d_delta_bias) p.d_bias_partials[i + k] = sum_bias;
    }
  }
  // Sum over the lanes that have the same channels of different rows.
  static __device__ float row_sum(float x) {
    x += __shfl_xor_sync(0xffffffffu, x, 8);
    return x + __shfl_xor_sync(0xffffffffu, x, 16);
  }
};

}  // namespace recgrela::cuda
