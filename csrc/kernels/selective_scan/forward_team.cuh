// Thread block of the forward, and of the sums over segments: some channels of a segment, row by row.
//
// A lane holds up to 16 states of a channel in registers; 1 to 16 adjacent lanes hold all states of the channel. Rows
// are processed in groups of 4. A lane computes the step, the input and the gate of its channel for its share of a
// group's rows, in registers, from elements that it loaded during the previous group. The lanes of a channel exchange
// these numbers and the sums over states by shuffles, so elements need neither shared memory nor barriers.
#pragma once

#include "kernels/common/activations.cuh"
#include "kernels/selective_scan/forward_rows.cuh"

namespace recgrela::cuda {

// Results of a scan: y and the states; the final state from zero; the same for the gradient, from the last row on.
enum class Scan { kForward, kSum, kReverseSum };

template <typename E, int kLanes, int kStates, Scan kScan>
struct ForwardTeam {
  static constexpr bool kReverse = kScan == Scan::kReverseSum, kForward = kScan == Scan::kForward,
                        kGates = kScan != Scan::kSum;
  static constexpr int kWidth = kLanes * kStates, kMatrices = kForward ? 2 : 1;
  static constexpr int kSharers = kScanRows < kLanes ? kScanRows : kLanes;  // lanes with different rows of a group
  static constexpr int kOwn = kScanRows / kSharers;  // rows of a group that a lane prepares, kSharers rows apart
  using Tiles = RowTiles<E, kWidth, kMatrices, kReverse>;

  const SelectivePlan& p;
  const int channel, lane;
  const bool in_range;
  float a[kStates], state[kStates] = {};
  float bias = 0, D = 0, steps = 0;
  const ScanRows<E, kReverse> rows;
  E *delta, *input, *gate = nullptr, *y = nullptr;  // the channel in the first row: delta; u, or d_y in reverse; z; y
  E next_delta[kOwn], next_input[kOwn], next_gate[kOwn];

  __device__ ForwardTeam(const SelectivePlan& p, const Segment& segment)
      : p(p),
        channel(static_cast<int>(blockIdx.x % p.scan.columns) * p.scan.channels +
                static_cast<int>(threadIdx.x) / kLanes),
        lane(static_cast<int>(threadIdx.x) % kLanes),
        in_range(channel < p.channels),
        rows(segment) {
    load_states(p.A, 0, a);
#pragma unroll
    for (float& x : a) x *= kLog2E;
    const int column = in_range ? channel : 0;  // threads beyond the last channel compute the first one again
    if (p.delta_bias) bias = p.delta_bias[column];
    if (kForward && p.D) D = p.D[column];
    delta = rows.column(p.delta, column), input = rows.column(inputs(), column);
    if (kGates) gate = rows.column(p.z, column);
    if (kForward) y = rows.column(p.y, column);
    if (rows.end != 0) load_group<false>(rows.place(own_row(0)));
  }
  __device__ const RowMatrix& inputs() const { return kReverse ? p.d_y : p.u; }
  __device__ void load_initial_state(const Segment& segment) {
    if (segment.count > 1) {
      load_states(p.segment_states, segment.slot, state);
    } else {
      load_states(p.initial_state, segment.sequence, state);
    }
  }

  // Row of a group that the lane prepares as its i-th.
  __device__ int own_row(int i) const { return lane % kSharers + i * kSharers; }
  // Index of the channel in [.., C] in row `index`.
  __device__ int64_t channel_of(int64_t index) const { return index * p.channels + channel; }
  // Place of the lane's i-th state after its first one, and whether the channel has that state.
  __device__ static constexpr int state_offset(int i) { return i / 4 * 4 * kLanes + i % 4; }
  __device__ bool has_state(int i) const { return 4 * lane < p.num_states - state_offset(i); }
  // The lane's first state in `matrices`, [.., C, N], of the channel with an index.
  template <typename T>
  __device__ T* states_of(T* matrices, int64_t channel_index) const {
    return matrices + channel_index * p.num_states + 4 * lane;
  }

  // Loads the lane's states of matrix `index` of [.., C, N]; zeros beyond the last state, or if `matrices` is null.
  __device__ void load_states(const float* matrices, int64_t index, float (&out)[kStates]) const {
    const float* const from = states_of(matrices, channel_of(index));
#pragma unroll
    for (int i = 0; i < kStates; ++i) out[i] = matrices && in_range && has_state(i) ? from[state_offset(i)] : 0.f;
  }
  // Stores the lane's states, from the address of its first one on.
  __device__ void store_states(float* first) const {
    if (!in_range) return;
    const bool vectors = p.num_states % 4 == 0 && reinterpret_cast<uintptr_t>(first) % 16 == 0;
#pragma unroll
    for (int i = 0; i < kStates; i += 4) {
      float* const to = first + state_offset(i);
      if (vectors) {
        if (has_state(i))
          *reinterpret_cast<float4*>(to) = make_float4(state[i], state[i + 1], state[i + 2], state[i + 3]);
      } else {
#pragma unroll
        for (int k = 0; k < 4; ++k)
          if (has_state(i + k)) to[k] = state[i + k];
      }
    }
  }

  // Processes the group whose first row has the place `first` and whose elements are loaded; `tile` has its B and C.
  // Loads the elements of the next group in the meantime. Rows after the segment's last one repeat it with a step and
  // an input of 0: they leave the state as it is and store nothing.
  __device__ void process_group(const float* tile, int first) {
    const int own = first + rows.place(own_row(0));
    Elements elements;
    if (p.delta_softplus && (!kGates || p.z.data) && rows.holds(first + rows.place(kScanRows - 1))) {
      prepare<true>(own, elements);  // the usual case has no other branch
    } else {
      prepare<false>(own, elements);
    }
    const auto& [step, x, skip, factor] = elements;
    float sums[kScanRows];
#pragma unroll
    for (int r = 0; r < kScanRows; ++r)
      sums[r] =
          process_row(tile + r * Tiles::kRowFloats, shared(step, r), shared(x, r), kLanes == 1 ? skip[r % kOwn] : 0.f);
    if constexpr (kForward) {
      share_sums(sums);
#pragma unroll
      for (int i = 0; i < kOwn; ++i) {
        const float sum = kLanes == 1 ? sums[i] : sums[i * kSharers] + skip[i];
        const int place = own + rows.place(i * kSharers);
        if (!rows.holds(place)) break;
        if (in_range && lane < kSharers) *rows.at(y, p.y, place) = from_float<E>(sum * factor[i]);
      }
    }
  }

 private:
  // Operands of the scan in the lane's own rows: the step; the input, which is the step times u, or d_y before the gate
  // in reverse; D u; and SiLU(z).
  struct Elements {
    float step[kOwn], x[kOwn], skip[kOwn], factor[kOwn];
  };

  // Computes them for the group that is loaded, from the place of its first own row on, and loads the next group.
  // kUsual: with softplus and, unless it is unused, a gate, and all rows are within the segment.
  template <bool kUsual>
  __device__ void prepare(int first, Elements& to) {
    float u[kOwn];
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      to.step[i] = to_float(next_delta[i]) + bias, u[i] = to_float(next_input[i]), to.factor[i] = 1.f;
      if (kUsual || p.delta_softplus) to.step[i] = softplus(to.step[i]);
      if (kGates && (kUsual || p.z.data)) {
        const float z = to_float(next_gate[i]);
        to.factor[i] = z * sigmoid(z);
      }
      to.x[i] = (kReverse ? to.factor[i] : to.step[i]) * u[i], to.skip[i] = D * u[i];
      if (!kUsual && !rows.holds(first + rows.place(i * kSharers))) to.step[i] = 0.f, to.x[i] = 0.f;
    }
    load_group<kUsual>(first + rows.place(kScanRows));
  }

  // Loads the lane's elements of a group, from the place of its first own row on; the last row's for rows after it.
  template <bool kUsual>
  __device__ void load_group(int first) {
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      const int place = rows.clamp(first + rows.place(i * kSharers));
      next_delta[i] = *rows.at(delta, p.delta, place), next_input[i] = *rows.at(input, inputs(), place);
      if (kGates && (kUsual || p.z.data)) next_gate[i] = *rows.at(gate, p.z, place);
    }
  }

  // Number of row r of the group, from the lane that prepared it.
  __device__ static float shared(const float (&own)[kOwn], int r) {
    if constexpr (kLanes == 1) return own[r];
    return __shfl_sync(0xffffffffu, own[r / kSharers], r % kSharers, kLanes);
  }

  // Adds the sums of the lanes of a channel. Each lane keeps those of its own rows: sums[i * kSharers].
  __device__ void share_sums(float (&sums)[kScanRows]) const {
#pragma unroll
    for (int offset = kSharers / 2; offset > 0; offset /= 2) {
      const bool upper = lane & offset;
#pragma unroll
      for (int r = 0; r < kScanRows; ++r) {
        if (r % kSharers >= offset) continue;
        const float sent = upper ? sums[r] : sums[r + offset], own = upper ? sums[r + offset] : sums[r];
        sums[r] = own + __shfl_xor_sync(0xffffffffu, sent, offset);
      }
    }
#pragma unroll
    for (int offset = kSharers; offset < kLanes; offset *= 2)
#pragma unroll
      for (int i = 0; i < kOwn; ++i) sums[i * kSharers] += __shfl_xor_sync(0xffffffffu, sums[i * kSharers], offset);
  }

  // Advances the state over a row. Adds the lane's part of C h to `sum` in the forward.
  __device__ float process_row(const float* row, float step, float x, float sum) {
    if constexpr (!kForward) steps += step;
#pragma unroll
    for (int i = 0; i < kStates; i += 4) {
      const float4 first = *reinterpret_cast<const float4*>(row + i * kLanes);
      const float weight[4] = {first.x, first.y, first.z, first.w};
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        float& s = state[i + k];
        const float decay = fast_exp2(step * a[i + k]);
        s = kReverse ? decay * (s + x * weight[k]) : decay * s + x * weight[k];
      }
      if constexpr (kForward) {
        const float4 c = *reinterpret_cast<const float4*>(row + kWidth + i * kLanes);
        sum += c.x * state[i], sum += c.y * state[i + 1], sum += c.z * state[i + 2], sum += c.w * state[i + 3];
      }
    }
    return sum;
  }
};

}  // namespace recgrela::cuda
