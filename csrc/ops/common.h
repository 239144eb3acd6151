// What the operators share. They are the only files that know both torch and the kernels: they check what
// memory safety needs, allocate, share the work out to torch's threads and register. Through libtorch's stable
// ABI, so one built library serves every torch >= 2.10. Shapes and errors for people are in recgrela/ops.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cstdlib>
#include <initializer_list>
#include <memory>
#include <new>
#include <optional>
#include <tuple>
#include <vector>

#include "cpu/params.h"

namespace recgrela::ops {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptTensor = std::optional<Tensor>;
namespace cpu = recgrela::cpu;

template <typename F>
auto dispatch_float(ScalarType type, F&& f) {
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double,
                  "the CPU kernels take float32 and float64, not ", torch::headeronly::toString(type));
  return type == ScalarType::Float ? f(float{}) : f(double{});
}

// A matrix of rows whose last dimension is contiguous: as it is, or else a copy of it.
inline Tensor with_contiguous_rows(const Tensor& x) {
  return x.dim() == 2 && x.size(1) > 1 && x.stride(1) != 1 ? torch::stable::contiguous(x) : x;
}

inline bool same_device(const Tensor& x, const Tensor& y) {
  return x.is_cpu() == y.is_cpu() && x.get_device_index() == y.get_device_index();
}

inline void check_rows(const Tensor& x, const Tensor& like, const char* name) {
  STD_TORCH_CHECK(same_device(x, like) && x.scalar_type() == like.scalar_type() && x.dim() == 2 &&
                      x.size(0) == like.size(0) && x.size(1) == like.size(1),
                  name, " must have the shape, dtype and device of the first operand");
}

// That an operand which may be absent is where `like` is, of a dtype and of `shape`, where -1 stands for any size.
inline void check_operand(const OptTensor& x, const Tensor& like, ScalarType type, std::initializer_list<int64_t> shape,
                          const char* name) {
  if (!x) return;
  bool fits = x->dim() == static_cast<int64_t>(shape.size());
  int64_t i = 0;
  for (const int64_t size : shape) fits = fits && (size < 0 || x->size(i) == size), ++i;
  STD_TORCH_CHECK(fits && same_device(*x, like) && x->scalar_type() == type, name,
                  " must have the shape that the operands ask for, the dtype ", torch::headeronly::toString(type),
                  " and the operands' device");
}

// What sums, states and tables of angles are kept in.
inline ScalarType state_type(const Tensor& x) {
  return x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

template <typename T>
cpu::Rows<const T> rows(const Tensor& x) {
  return {static_cast<const T*>(x.const_data_ptr()), x.stride(0)};
}
template <typename T>
cpu::Rows<T> mutable_rows(const Tensor& x) {
  return {static_cast<T*>(x.mutable_data_ptr()), x.stride(0)};
}
// k, where the rows hold q and k side by side.
template <typename T>
cpu::Rows<T> second_half(const cpu::Rows<T>& qk, int64_t d) {
  return {qk.data + d, qk.stride};
}
template <typename T>
const T* data(const OptTensor& x) {
  return x ? static_cast<const T*>(x->const_data_ptr()) : nullptr;
}
template <typename T>
T* mutable_data(const OptTensor& x) {
  return x ? static_cast<T*>(x->mutable_data_ptr()) : nullptr;
}

inline OptTensor contiguous(const OptTensor& x) { return x ? OptTensor(torch::stable::contiguous(*x)) : x; }

struct Sequences {
  std::vector<int64_t> offsets;
  int64_t max_seqlen = 0;
  int64_t count() const { return static_cast<int64_t>(offsets.size()) - 1; }
};

inline void check_cu_seqlens(const Tensor& cu_seqlens, const Tensor& like) {
  const ScalarType type = cu_seqlens.scalar_type();
  STD_TORCH_CHECK(same_device(cu_seqlens, like) && cu_seqlens.dim() == 1 && cu_seqlens.size(0) >= 1 &&
                      (type == ScalarType::Int || type == ScalarType::Long),
                  "cu_seqlens must be a 1-D int32 or int64 tensor on the operands' device, [B + 1]");
}

// Of cu_seqlens on the CPU.
inline Sequences read_sequences(const Tensor& cu_seqlens, int64_t num_rows) {
  const Tensor c = torch::stable::contiguous(cu_seqlens);
  Sequences s;
  s.offsets.resize(c.size(0));
  if (c.scalar_type() == ScalarType::Int) {
    std::copy_n(static_cast<const int32_t*>(c.const_data_ptr()), s.offsets.size(), s.offsets.begin());
  } else {
    std::copy_n(static_cast<const int64_t*>(c.const_data_ptr()), s.offsets.size(), s.offsets.begin());
  }
  STD_TORCH_CHECK(s.offsets.front() == 0 && s.offsets.back() == num_rows, "cu_seqlens must start at 0 and end at ",
                  num_rows, ", the number of rows; it goes from ", s.offsets.front(), " to ", s.offsets.back());
  for (size_t i = 1; i < s.offsets.size(); ++i) {
    STD_TORCH_CHECK(s.offsets[i] >= s.offsets[i - 1], "cu_seqlens must not decrease; it does at index ", i);
    s.max_seqlen = std::max(s.max_seqlen, s.offsets[i] - s.offsets[i - 1]);
  }
  return s;
}

// Memory for one call, not initialised, aligned to cache lines.
struct Scratch {
  static constexpr int64_t kAlign = 64;
  std::unique_ptr<char, decltype(&std::free)> memory;

  explicit Scratch(int64_t bytes)
      : memory(static_cast<char*>(std::aligned_alloc(kAlign, padded(std::max<int64_t>(bytes, 1)))), &std::free) {
    if (!memory) throw std::bad_alloc();
  }
  static int64_t padded(int64_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }
};

// Runs worker(params, scratch) on as many threads as there are and there is work for. The workers share out the
// items 0 .. num_items - 1 through the queue params.next; num_elements is a measure of the work, scratch_elements
// what a worker needs.
template <typename T, typename Params>
void run(void (*worker)(const Params&, T*), Params& params, int64_t num_items, int64_t num_elements,
         int64_t scratch_elements) {
  constexpr int64_t kElementsPerWorker = 16384;
  std::atomic<int64_t> next{0};
  params.next = &next;
  const int64_t workers = std::min(
      {static_cast<int64_t>(torch::stable::get_num_threads()), num_items, num_elements / kElementsPerWorker + 1});
  const int64_t bytes = Scratch::padded(scratch_elements * sizeof(T) + Scratch::kAlign);  // no line in common
  const Scratch scratch(workers * bytes);
  torch::stable::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) worker(params, reinterpret_cast<T*>(scratch.memory.get() + i * bytes));
  });
}

// One direction of an op.
template <typename T, typename Op, typename Params>
void run(const Op& op, Params& params, bool backward, int64_t num_items, int64_t num_elements) {
  run<T>(backward ? op.backward : op.forward, params, num_items, num_elements, op.scratch(params, backward));
}

// The partial sums of the weights' gradients, [groups, n], added up in a fixed order.
template <typename T>
void add_groups(const std::vector<T>& partial, int64_t n, const Tensor& out) {
  std::vector<double> total(n);
  for (size_t row = 0; row < partial.size(); row += n)
    for (int64_t i = 0; i < n; ++i) total[i] += partial[row + i];
  std::copy(total.begin(), total.end(), static_cast<T*>(out.mutable_data_ptr()));
}

}  // namespace recgrela::ops
