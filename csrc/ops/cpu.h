// Code that the CPU backends of the operators share.
#pragma once

#include <cstdlib>
#include <memory>
#include <new>

#include "common.h"
#include "cpu/common.h"

namespace recgrela::ops {

namespace cpu = recgrela::cpu;

template <typename T>
cpu::RowMatrix<const T> rows(const OptTensor& x) {
  if (!x) return {};
  return {static_cast<const T*>(x->const_data_ptr()), x->stride(0)};
}
template <typename T>
cpu::RowMatrix<T> mutable_rows(const Tensor& x) {
  if (x.dim() != 2) return {};  // not wanted
  return {static_cast<T*>(x.mutable_data_ptr()), x.stride(0)};
}

// The parts of a state [B, ...], which check_state has checked, as rows.
template <typename T>
cpu::RowMatrix<T> state_rows(const Tensor& x) {
  return {static_cast<T*>(x.mutable_data_ptr()), x.stride(0)};
}

// Calls f(T{}), where T is the C++ type of the dtype.
template <typename F>
auto dispatch_float(ScalarType type, F&& f) {
  RECGRELA_CHECK(type == ScalarType::Float || type == ScalarType::Double,
                 "the CPU kernels take float32 and float64, not ", torch::headeronly::toString(type));
  return type == ScalarType::Float ? f(float{}) : f(double{});
}

struct Sequences {
  std::vector<int64_t> offsets;
  int64_t max_seqlen = 0;
  int64_t count() const { return static_cast<int64_t>(offsets.size()) - 1; }
};

// Reads contiguous cu_seqlens and checks its values.
inline Sequences read_sequences(const Tensor& cu_seqlens, int64_t num_rows) {
  Sequences s;
  s.offsets.resize(cu_seqlens.size(0));
  if (cu_seqlens.scalar_type() == ScalarType::Int) {
    std::copy_n(static_cast<const int32_t*>(cu_seqlens.const_data_ptr()), s.offsets.size(), s.offsets.begin());
  } else {
    std::copy_n(static_cast<const int64_t*>(cu_seqlens.const_data_ptr()), s.offsets.size(), s.offsets.begin());
  }
  RECGRELA_CHECK(s.offsets.front() == 0 && s.offsets.back() == num_rows, "cu_seqlens must start at 0 and end at ",
                 num_rows, ", the number of rows; it goes from ", s.offsets.front(), " to ", s.offsets.back());
  for (size_t i = 1; i < s.offsets.size(); ++i) {
    RECGRELA_CHECK(s.offsets[i] >= s.offsets[i - 1], "cu_seqlens must not decrease; it does at index ", i);
    s.max_seqlen = std::max(s.max_seqlen, s.offsets[i] - s.offsets[i - 1]);
  }
  return s;
}

// Uninitialized memory for one call, aligned to cache lines.
struct Scratch {
  static constexpr int64_t kAlign = 64;
  std::unique_ptr<char, decltype(&std::free)> memory;

  explicit Scratch(int64_t bytes)
      : memory(static_cast<char*>(std::aligned_alloc(kAlign, cpu::round_up(std::max<int64_t>(bytes, 1), kAlign))),
               &std::free) {
    if (!memory) throw std::bad_alloc();
  }
};

// Runs worker(params, scratch) on as many threads as the work needs, at most torch's number of threads. The threads
// share the items through params.queue.
//   num_elements      amount of work, as a number of elements
//   scratch_elements  size of each thread's scratch memory
template <typename T, typename Params>
void run_workers(void (*worker)(const Params&, T*), Params& params, int64_t num_items, int64_t num_elements,
                 int64_t scratch_elements) {
  constexpr int64_t kElementsPerThread = 16384;
  cpu::WorkQueue queue(num_items);
  params.queue = &queue;
  const int64_t threads = std::min(
      {static_cast<int64_t>(torch::stable::get_num_threads()), num_items, num_elements / kElementsPerThread + 1});
  // an extra cache line keeps the threads from sharing one
  const int64_t bytes = cpu::round_up(scratch_elements * sizeof(T) + Scratch::kAlign, Scratch::kAlign);
  const Scratch scratch(threads * bytes);
  torch::stable::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) worker(params, reinterpret_cast<T*>(scratch.memory.get() + i * bytes));
  });
}
template <typename T, typename Params>
void run_forward(const cpu::Kernels<T, Params>& kernels, Params& p, int64_t num_items, int64_t num_elements) {
  run_workers(kernels.forward, p, num_items, num_elements, kernels.scratch(p, false));
}
template <typename T, typename Params>
void run_backward(const cpu::Kernels<T, Params>& kernels, Params& p, int64_t num_items, int64_t num_elements) {
  run_workers(kernels.backward, p, num_items, num_elements, kernels.scratch(p, true));
}

// Partial sums of a gradient, one row for each group of sequences. add_up() stores their sum, added in a fixed order,
// in the gradient.
template <typename T>
class PartialSums {
 public:
  PartialSums(int64_t groups, const Tensor& out) : out_(out), size_(out.numel() * out.element_size() / sizeof(T)) {
    sums_.resize(groups * size_);
  }
  T* data() { return sums_.empty() ? nullptr : sums_.data(); }
  void add_up() const {
    std::vector<double> total(size_);
    for (size_t row = 0; row < sums_.size(); row += size_)
      for (size_t i = 0; i < size_; ++i) total[i] += sums_[row + i];
    std::copy(total.begin(), total.end(), static_cast<T*>(out_.mutable_data_ptr()));
  }

 private:
  const Tensor out_;
  const size_t size_;  // elements of a row; a complex number counts as two
  std::vector<T> sums_;
};

}  // namespace recgrela::ops

// Defines an op and registers its CPU backend, the struct recgrela::ops::Cpu of the including file.
#define RECGRELA_CPU_OP(Op)                                                                   \
  STABLE_TORCH_LIBRARY_FRAGMENT(recgrela, m) { recgrela::ops::define<recgrela::ops::Op>(m); } \
  STABLE_TORCH_LIBRARY_IMPL(recgrela, CPU, m) { recgrela::ops::implement<recgrela::ops::Op, recgrela::ops::Cpu>(m); }
