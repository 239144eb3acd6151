// The host side of gated_rela, and its kernels that do not depend on the head width.
//
// Many short sequences: a team of warps takes a head of a whole sequence. Few long ones: sequences are cut into
// segments, whose sums are found first, added up along each sequence in order, and given to the teams that finish the
// segments. Which it is depends on sizes that the host knows; the cut itself is found on the device.
#include <algorithm>

#include "kernels/gated_rela/plan.cuh"

namespace recgrela::cuda {
namespace {

constexpr int kScanThreads = 128, kReduceThreads = 1024;

struct ScanArgs {
  RelaPlan plan;
  float* states = nullptr;         // [slots, H, d + 1, d], sums of segments on entry
  const float* initial = nullptr;  // [B, H, d + 1, d], may be null
  bool reverse = false;
};

// The sums of a sequence's segments in order: each becomes the sum of those before it (causal; after it, in reverse)
// with the initial one, or of all. A thread takes one element of a head's sums, and several segments at a time.
__global__ void __launch_bounds__(kScanThreads) scan_kernel(const ScanArgs args) {
  constexpr int kAtATime = 8;
  const RelaPlan& p = args.plan;
  const int64_t size = p.state_size(), parts = (size + kScanThreads - 1) / kScanThreads;
  const int64_t element = blockIdx.x % parts * kScanThreads + threadIdx.x, which = blockIdx.x / parts;
  const int64_t b = which / p.num_heads, head = which % p.num_heads;
  const RowRange rows = sequence_rows(p.sequences, b);
  const int64_t count = (rows.end - rows.begin + p.segment_rows - 1) / p.segment_rows;
  if (count <= 1 || element >= size) return;
  const int64_t step = (args.reverse ? -1 : 1) * p.num_heads * size;
  float* state =
      args.states + ((first_slot(p, b) + (args.reverse ? count - 1 : 0)) * p.num_heads + head) * size + element;
  float sum = args.initial ? args.initial[which * size + element] : 0.f;
  // The last segment's own sums are not there in the causal form, as nobody needs them.
  const int64_t known = p.causal ? count - 1 : count;
  float* at = state;
  for (int64_t i = 0; i < known; i += kAtATime, at += kAtATime * step) {
    float part[kAtATime];
#pragma unroll
    for (int k = 0; k < kAtATime; ++k) part[k] = i + k < known ? at[k * step] : 0.f;
#pragma unroll
    for (int k = 0; k < kAtATime; ++k) {
      if (p.causal && i + k < known) at[k * step] = sum;
      sum += part[k];
    }
  }
  if (p.causal) {
    state[known * step] = sum;
  } else {
    for (int64_t i = 0; i < count; ++i) state[i * step] = sum;
  }
}

// The gradients of the taps and the bias from those of the slots, added in an order of its own whatever the device.
// A block takes 8 places of [D, 5], with 128 threads each.
template <typename E>
__global__ void __launch_bounds__(kReduceThreads) reduce_taps_kernel(const RelaPlan p) {
  float* const parts = reinterpret_cast<float*>(dynamic_shared());
  const int64_t places = p.width() * (kMaxKernelSize + 1);
  const int64_t place = int64_t{blockIdx.x} * 8 + threadIdx.x % 8;
  float sum = 0.f;
  if (place < places) {
#pragma unroll 8
    for (int64_t slot = threadIdx.x / 8; slot < p.num_slots; slot += kReduceThreads / 8)
      sum += p.conv_partial[slot * places + place];
  }
  parts[threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.x >= 8 || place >= places) return;
  sum = 0.f;
  for (int i = 0; i < kReduceThreads / 8; ++i) sum += parts[i * 8 + threadIdx.x];
  const int64_t channel = place / (kMaxKernelSize + 1);
  const int tap = static_cast<int>(place % (kMaxKernelSize + 1)), w = tap - (kMaxKernelSize - p.kernel_size);
  if (tap == kMaxKernelSize)
    static_cast<E*>(p.d_conv_bias)[channel] = from_float<E>(sum);
  else if (w >= 0)
    static_cast<E*>(p.d_conv_weight)[channel * p.kernel_size + w] = from_float<E>(sum);
}

size_t align(size_t bytes) { return (bytes + 255) / 256 * 256; }

RelaPlan make_plan(const GatedRelaParams& params) {
  RelaPlan p;
  static_cast<GatedRelaParams&>(p) = params;
  const int64_t rows = params.sequences.num_rows, count = params.sequences.num_sequences;
  const int64_t longest = params.sequences.max_length > 0 ? std::min(params.sequences.max_length, rows) : rows;
  if (p.segment_rows == 0) {
    // About 32 warps for each multiprocessor, but never segments so short that the sums of each weigh in.
    constexpr int64_t kLeast = 256, kWarps = 32;
    const int64_t warps_per_head = std::max(1, p.head_dim / kTile);
    p.segment_rows = std::max(kLeast, rows * p.num_heads * warps_per_head / (kWarps * multiprocessors()));
  }
  constexpr int64_t kMost = 1 << 30;  // rows of a segment are counted in 32 bits
  p.segment_rows = std::min((p.segment_rows + kTile - 1) / kTile * kTile, kMost);
  p.cut = longest > p.segment_rows;
  p.num_slots = count == 0 ? 0 : p.cut ? rows / p.segment_rows + count : count;
  p.room_chunks = p.causal ? std::max<int64_t>(1, (std::min(longest, p.segment_rows) + kTile - 1) / kTile) : 1;
  return p;
}

// Lays the plan's arrays out in the workspace; returns their size.
size_t lay_out(RelaPlan& p, bool backward) {
  size_t used = 0;
  auto take_bytes = [&](int64_t bytes) {
    void* const place = static_cast<char*>(p.workspace) + used;
    used += align(bytes);
    return place;
  };
  auto take = [&](float*& array, int64_t elements) {
    array = static_cast<float*>(take_bytes(elements * int64_t{sizeof(float)}));
  };
  const int64_t states = p.num_slots * p.num_heads * p.state_size();
  const bool sums = p.cut || !p.causal;
  take(p.key_state, sums ? states : 0);
  if (!backward) return used;
  take(p.query_state, sums ? states : 0);
  // Rooms for as many teams as run at a time, of up to 12 warps to a multiprocessor; blocks have one or two.
  const int64_t tile = kPackedTile * (p.dtype == DType::kFloat32 ? 4 : 2);
  const int64_t state = p.tiles() * p.tiles() * tile, sum = p.tiles() * kTile * int64_t{sizeof(float)};
  const int64_t room = (p.room_chunks + 1) * state + p.room_chunks * sum;
  const int64_t most = std::max((p.team_workspace_bytes > 0 ? p.team_workspace_bytes : int64_t{128} << 20) / room,
                                12 / p.tiles() * multiprocessors());
  p.num_rooms = (std::min(p.works(), most) + 1) / 2 * 2;
  p.chunk_states = take_bytes(p.num_rooms * (p.room_chunks + 1) * state);
  take(p.chunk_sums, p.num_rooms * p.room_chunks * p.tiles() * kTile);
  take(p.conv_partial, p.kernel_size > 0 ? p.num_slots * p.width() * (kMaxKernelSize + 1) : 0);
  return used;
}

template <typename F>
cudaError_t with_kernels(DType dtype, F f) {
  switch (dtype) {
    case DType::kFloat32:
      return f(RelaKernels<float>{}, float{});
    case DType::kFloat16:
      return f(RelaKernels<fp16>{}, fp16{});
    case DType::kBFloat16:
      return f(RelaKernels<bf16>{}, bf16{});
  }
  return cudaErrorInvalidValue;
}

#define RECGRELA_RETURN_IF(call)            \
  do {                                      \
    const cudaError_t error = (call);       \
    if (error != cudaSuccess) return error; \
  } while (false)

cudaError_t scan(const RelaPlan& p, float* states, const float* initial, bool reverse, cudaStream_t stream) {
  ScanArgs args;
  args.plan = p, args.states = states, args.initial = initial, args.reverse = reverse;
  const int64_t parts = (p.state_size() + kScanThreads - 1) / kScanThreads;
  return launch(scan_kernel, p.sequences.num_sequences * p.num_heads * parts, kScanThreads, 0, stream, args);
}

// The states of keys before all segments, or of all keys.
template <typename Kernels>
cudaError_t find_key_states(Kernels kernels, const RelaPlan& p, cudaStream_t stream) {
  if (p.causal && !p.cut) return cudaSuccess;
  RECGRELA_RETURN_IF(kernels.key_sums(p, stream));
  return p.cut ? scan(p, p.key_state, p.initial_kv_state, false, stream) : cudaSuccess;
}

}  // namespace

size_t gated_rela_forward_workspace(const GatedRelaParams& params) {
  RelaPlan p = make_plan(params);
  return lay_out(p, false);
}

size_t gated_rela_backward_workspace(const GatedRelaParams& params) {
  RelaPlan p = make_plan(params);
  return lay_out(p, true);
}

cudaError_t gated_rela_forward(const GatedRelaParams& params, cudaStream_t stream) {
  RelaPlan p = make_plan(params);
  lay_out(p, false);
  RECGRELA_RETURN_IF(check_sequences(p.sequences, p.initial_position, p.rotary ? p.rotary_positions : 0, stream));
  return with_kernels(p.dtype, [&](auto kernels, auto) {
    RECGRELA_RETURN_IF(find_key_states(kernels, p, stream));
    return kernels.forward(p, stream);
  });
}

cudaError_t gated_rela_backward(const GatedRelaParams& params, cudaStream_t stream) {
  RelaPlan p = make_plan(params);
  lay_out(p, true);
  RECGRELA_RETURN_IF(check_sequences(p.sequences, p.initial_position, p.rotary ? p.rotary_positions : 0, stream));
  return with_kernels(p.dtype, [&](auto kernels, auto zero) {
    RECGRELA_RETURN_IF(find_key_states(kernels, p, stream));
    if (!p.causal || p.cut) RECGRELA_RETURN_IF(kernels.query_sums(p, stream));
    if (p.cut) RECGRELA_RETURN_IF(scan(p, p.query_state, p.d_final_kv_state, true, stream));
    RECGRELA_RETURN_IF(kernels.backward(p, stream));
    if (p.kernel_size == 0) return cudaSuccess;
    const int64_t places = p.width() * (kMaxKernelSize + 1);
    return launch(reduce_taps_kernel<decltype(zero)>, (places + 7) / 8, kReduceThreads, kReduceThreads * sizeof(float),
                  stream, p);
  });
}

}  // namespace recgrela::cuda
