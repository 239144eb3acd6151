// Arguments of the CPU kernels: plain pointers and sizes, no torch. Rows are packed: sequence b owns the
// rows cu_seqlens[b] .. cu_seqlens[b+1]. A row stride is in elements; the last dimension is contiguous.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace recgrela::cpu {

// Sequences are dealt out in groups, each of which owns one row of partial weight gradients. The grouping
// depends on the batch alone, never on the number of threads, so the sums do not either.
struct Groups {
  int64_t num_seqs = 0;
  int64_t seqs_per_group = 1;
  int64_t count = 0;

  // num_weights: elements of the gradient that each group sums up in memory of its own
  static Groups of(int64_t num_seqs, int64_t num_weights) {
    constexpr int64_t kMaxGroups = 1024, kMaxElements = int64_t{1} << 24;
    const int64_t most = std::max<int64_t>(1, std::min(kMaxGroups, kMaxElements / std::max<int64_t>(1, num_weights)));
    Groups g;
    g.num_seqs = num_seqs;
    g.seqs_per_group = std::max<int64_t>(1, (num_seqs + most - 1) / most);
    g.count = (num_seqs + g.seqs_per_group - 1) / g.seqs_per_group;
    return g;
  }
  int64_t begin(int64_t group) const { return group * seqs_per_group; }
  int64_t end(int64_t group) const {
    const int64_t e = (group + 1) * seqs_per_group;
    return e < num_seqs ? e : num_seqs;
  }
};

template <typename T>
struct Rows {
  T* data = nullptr;  // null: absent
  int64_t stride = 0;
  T* row(int64_t i) const { return data + i * stride; }
};

template <typename T>
struct GatedRelaParams {
  Groups groups;
  int64_t max_seqlen = 0;
  int64_t num_heads = 0;
  int64_t head_dim = 0;    // even
  int64_t conv_width = 0;  // 0: no convolution
  bool causal = false;
  T eps = 0;

  const int64_t* cu_seqlens = nullptr;  // [B + 1]
  Rows<const T> q, k, v, g;             // [T, D]; g may be absent
  const T* rotary = nullptr;            // [P, D/2, 2] (cos, sin), P >= max_seqlen; null: no rotation
  const T* conv_weight = nullptr;       // [D, K]
  const T* conv_bias = nullptr;         // [D]
  Rows<T> y;                            // forward only

  // The causal form may begin from a state and hand one on; null: it begins from nothing, and hands nothing on.
  const T* initial_sums = nullptr;         // [B, H, d + 1, d] of R phi(k) (x) v and, in the last row, of phi(k)
  const T* initial_values = nullptr;       // [B, K - 1, D] the last rows of v, oldest first
  const int64_t* initial_count = nullptr;  // [B] rows before
  T *final_sums = nullptr, *final_values = nullptr;
  int64_t* final_count = nullptr;

  Rows<const T> dy;                                                  // from here on: backward only
  Rows<T> dq, dk, dv, dg;                                            // dg absent when g is
  const T *final_sums_grad = nullptr, *final_values_grad = nullptr;  // null: zero
  T *initial_sums_grad = nullptr, *initial_values_grad = nullptr;    // null when there is no initial state
  T* dweight = nullptr;                                              // [groups, D, K] partial sums
  T* dbias = nullptr;                                                // [groups, D]

  // An item of work is a group of sequences and some heads: all of them where there are groups enough for every
  // worker, since the heads of a row share its cache lines.
  int64_t heads_per_item = 1;
  std::atomic<int64_t>* next = nullptr;  // work queue shared by the workers
  int64_t num_items() const { return groups.count * (num_heads / heads_per_item); }
};

template <typename T>
struct CausalConv1dParams {
  Groups groups;
  int64_t channels = 0;
  int64_t width = 0;
  bool silu = false;

  const int64_t* cu_seqlens = nullptr;
  Rows<const T> x;                    // [T, C]
  const T* weight = nullptr;          // [C, K]
  const T* bias = nullptr;            // [C] or null
  const T* initial_values = nullptr;  // [B, K - 1, C], the rows before each sequence, oldest first; null: zeros
  Rows<T> y;
  T* final_values = nullptr;  // [B, K - 1, C]; may be null

  Rows<const T> dy;
  const T* final_values_grad = nullptr;  // null: zero
  T* initial_values_grad = nullptr;      // null when there are no initial values
  Rows<T> dx;
  T* dweight = nullptr;  // [groups, C, K]
  T* dbias = nullptr;    // [groups, C]; null when bias is

  std::atomic<int64_t>* next = nullptr;
  int64_t num_items() const { return groups.count; }
};

// Elements are real: a complex number is a pair (re, im) of them.
template <typename T>
struct LinearScanParams {
  Groups groups;
  int64_t width = 0;  // elements of a row
  int64_t part = 0;   // of which an item of work takes so many
  bool complex = false;

  const int64_t* cu_seqlens = nullptr;
  Rows<const T> x;                   // forward only
  Rows<const T> a;                   // of stride 0 where it is the same at every step
  const T* initial_state = nullptr;  // [B, width]; null: zeros
  Rows<T> h;                         // forward only
  T* final_state = nullptr;          // [B, width]; may be null

  Rows<const T> dh, saved_h;  // from here on: backward only
  const T* final_state_grad = nullptr;
  T* initial_state_grad = nullptr;
  Rows<T> dx;
  Rows<T> da;               // of each step, or
  T* da_partial = nullptr;  // [groups, width], zero at first

  std::atomic<int64_t>* next = nullptr;
  // Whole rows where there are sequences enough: workers then share no page of memory.
  void set_part() {
    constexpr int64_t kMany = 16, kNarrow = 32;
    part = std::max<int64_t>(1, groups.count >= kMany ? width : std::min(width, kNarrow));
  }
  int64_t num_parts() const { return (width + part - 1) / part; }
  int64_t num_items() const { return groups.count * num_parts(); }
};

// Rows between the states that the forward of selective_scan keeps for the backward: those before row
// kCheckpointRows * j of sequence b are number cu_seqlens[b] / kCheckpointRows + b + j; numbers that no row has are
// zero.
inline constexpr int64_t kCheckpointRows = 32;

template <typename T>
struct SelectiveScanParams {
  Groups groups;
  int64_t num_rows = 0, channels = 0, num_states = 0;
  int64_t part_channels = 0;  // what an item of work takes of them
  bool softplus = false;

  const int64_t* cu_seqlens = nullptr;
  Rows<const T> u, delta, z;                    // [T, I]; z may be absent
  Rows<const T> B, C;                           // [T, N]
  const T* A = nullptr;                         // [I, N]
  const T *D = nullptr, *delta_bias = nullptr;  // [I] or null
  const T* initial_state = nullptr;             // [B, I, N]; null: zeros
  Rows<T> y;                                    // forward only
  T *final_state = nullptr, *kept = nullptr;    // [B, I, N], [checkpoints, I, N]; may be null

  Rows<const T> dy;          // from here on: backward only
  const T* saved = nullptr;  // what the forward kept
  const T* final_state_grad = nullptr;
  T* initial_state_grad = nullptr;
  Rows<T> du, ddelta, dz;
  T *dB = nullptr, *dC = nullptr;                          // [parts, T, N] partial sums
  T *dA = nullptr, *dD = nullptr, *ddelta_bias = nullptr;  // [groups, I, N], [groups, I] partial sums

  // Parts that depend on the batch alone, as the groups do: several where there are few sequences, but not narrow ones
  // nor more than there is room for, since each has partial sums of its own.
  void set_parts() {
    constexpr int64_t kItems = 64, kNarrow = 32, kAlign = 16, kMaxElements = int64_t{1} << 24;
    const int64_t wanted = (kItems + groups.count - 1) / std::max<int64_t>(1, groups.count);
    const int64_t room = kMaxElements / std::max<int64_t>(1, num_rows * num_states);
    const int64_t parts = std::max<int64_t>(1, std::min({wanted, channels / kNarrow, room}));
    part_channels = std::max<int64_t>(1, ((channels + parts - 1) / parts + kAlign - 1) / kAlign) * kAlign;
  }

  std::atomic<int64_t>* next = nullptr;
  int64_t num_parts() const { return std::max<int64_t>(1, (channels + part_channels - 1) / part_channels); }
  int64_t num_items() const { return groups.count * num_parts(); }
};

template <typename T>
struct Dropout {
  uint64_t seed = 0;
  uint32_t threshold = 0;  // draws below it drop the element; 0: no dropout
  T scale = 1;             // of the elements that stay
};

template <typename T>
struct DropoutParams {
  static constexpr int64_t kItem = 8192;  // elements

  Dropout<T> dropout;
  int64_t numel = 0;  // <= 2^32
  const T* x = nullptr;
  T* y = nullptr;

  std::atomic<int64_t>* next = nullptr;
  int64_t num_items() const { return (numel + kItem - 1) / kItem; }
};

enum class Activation { kNone, kRelu, kSilu, kGelu };

template <typename T>
struct MlpParams {
  static constexpr int64_t kRowBlock = 96, kMaxGroups = 16;

  int64_t num_rows = 0, in_features = 0, hidden_features = 0, out_features = 0;
  Rows<const T> x, w1, w2;  // [M, I], [F, I], [O, F]
  const T *b1 = nullptr, *b2 = nullptr;
  Activation activation = Activation::kNone;
  Dropout<T> dropout1, dropout2;
  Rows<T> y;  // forward only

  Rows<const T> dy;  // from here on: backward only
  Rows<T> dx;
  // The gradients of the weights are summed up in groups of rows, whose number depends on num_rows alone.
  int64_t rows_per_group = 0, num_groups = 0;
  T* gradients = nullptr;  // [groups][W1, W2, b1, b2]

  std::atomic<int64_t>* next = nullptr;
  int64_t num_weights() const { return hidden_features * (in_features + 1) + out_features * (hidden_features + 1); }
  int64_t num_items(bool backward) const { return backward ? num_groups : (num_rows + kRowBlock - 1) / kRowBlock; }
};

// A block of scores at a time: rows row0 .. row0 + num_rows by items item0 .. item0 + num_items.
template <typename T>
struct LinearCrossEntropyParams {
  static constexpr int64_t kRowBlock = 48;  // a multiple of every instruction set's tile
  static constexpr int64_t kChunkItems = 256;

  int64_t dim = 0;
  Rows<const T> hidden, weight;     // [T, D], [n_items, D]
  const int64_t* target = nullptr;  // [T]
  T scale = 0;                      // of the gradients
  Rows<T> d_hidden, d_weight;       // may be absent

  // of each row, [T]: the highest score and the sum of exp(score - highest) so far, and the target's score
  T *highest = nullptr, *sum = nullptr, *target_score = nullptr;

  int64_t row0 = 0, num_rows = 0, item0 = 0, num_items = 0;
  bool reduce = false;          // find highest, sum and target_score
  bool make_gradients = false;  // from highest and sum, which are then those of all items

  // the block's memory; the widths are those of the instruction set
  int64_t lanes = 0, panel_width = 0;
  int64_t chunk_panels = 0;                          // kChunkItems
  T* scores = nullptr;                               // [panels, padded_rows, panel_width]
  T* weight_panels = nullptr;                        // [panels, D, panel_width]
  T* weight_rows = nullptr;                          // [panels * panel_width, padded_dim]
  T* scaled = nullptr;                               // [num_rows, padded_dim]
  T *chunk_highest = nullptr, *chunk_sum = nullptr;  // [chunks, padded_rows]

  int64_t padded_dim() const { return (dim + lanes - 1) / lanes * lanes; }
  int64_t row_blocks() const { return (num_rows + kRowBlock - 1) / kRowBlock; }
  int64_t padded_rows() const { return row_blocks() * kRowBlock; }
  int64_t panels() const { return (num_items + panel_width - 1) / panel_width; }
  int64_t chunks() const { return (panels() + chunk_panels - 1) / chunk_panels; }

  std::atomic<int64_t>* next = nullptr;
  int64_t num_items_of_work = 0;
};

// The kernels of one instruction set. Each call of a worker takes items from the queue until none is left; any
// number may run at once, each with scratch of its own, of as many elements as the scratch function says.
template <typename T>
struct Kernels {
  template <typename Params>
  struct Op {
    int64_t (*scratch)(const Params&, bool backward);
    void (*forward)(const Params&, T* scratch);
    void (*backward)(const Params&, T* scratch);
  };
  Op<GatedRelaParams<T>> gated_rela;
  Op<GatedRelaParams<T>> key_sums;  // of k and v alone: final_sums, and dk and dv from final_sums_grad
  Op<CausalConv1dParams<T>> causal_conv1d;
  Op<SelectiveScanParams<T>> selective_scan;
  void (*linear_scan)(const LinearScanParams<T>&, T* scratch);
  void (*linear_scan_backward)(const LinearScanParams<T>&, T* scratch);
  Op<MlpParams<T>> mlp;

  void (*dropout)(const DropoutParams<T>&, T* scratch);

  struct LinearCrossEntropy {
    using Params = LinearCrossEntropyParams<T>;
    using Phase = void (*)(const Params&, T* scratch);
    int64_t lanes, panel_width;
    int64_t (*scratch)(const Params&);
    Phase pack, score, exponentiate, finish, gradients;
  } linear_cross_entropy;
};

// Those of the widest instruction set that this processor has (or that `set_isa` chose).
template <typename T>
const Kernels<T>& kernels();

const char* isa();               // "avx512", "avx2" or "baseline"
bool set_isa(const char* name);  // for tests; false if this processor cannot run it

}  // namespace recgrela::cpu
