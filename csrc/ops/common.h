// Code that the operators share. Only csrc/ops uses both torch and the kernels: it checks operands for memory safety,
// allocates results, divides the work among torch's threads and registers the operators. Errors for users come from
// recgrela/ops. Everything goes through libtorch's stable ABI, so that one library works with every torch >= 2.10.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <dlfcn.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/macros/Macros.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <exception>
#include <iterator>
#include <new>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

// Refuses an operand if the condition is false; the other arguments are the parts of the message. Unlike
// STD_TORCH_CHECK, it does not write a place in the sources: `Named` begins the message with the operator's name.
#define RECGRELA_CHECK(condition, ...)                                    \
  do {                                                                    \
    if (C10_UNLIKELY(!(condition))) ::recgrela::ops::refuse(__VA_ARGS__); \
  } while (false)

namespace recgrela::ops {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptTensor = std::optional<Tensor>;
using Shape = std::vector<int64_t>;

template <typename... Parts>
[[noreturn]] void refuse(const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

// Returns the message of an exception. If a call of libtorch failed, the exception of its headers names the call alone;
// PyTorch 2.13 and later keep the message.
inline std::string message_of(const std::exception& error) {
  using Function = const char* (*)();
  static const auto get = reinterpret_cast<Function>(dlsym(RTLD_DEFAULT, "torch_exception_get_what_without_backtrace"));
  const std::string message = error.what();
  return get && message.find("API call failed") != std::string::npos ? get() : message;
}

// Python's MemoryError, with a message.
class OutOfMemory : public std::bad_alloc {
 public:
  explicit OutOfMemory(std::string message) : message_(std::move(message)) {}
  const char* what() const noexcept override { return message_.c_str(); }

 private:
  std::string message_;
};

// An operator's function, with the operator's name before the messages of its errors.
template <const char* kName, bool kBackward, auto function>
struct Named;
template <const char* kName, bool kBackward, typename Result, typename... Args, Result (*function)(Args...)>
struct Named<kName, kBackward, function> {
  static Result call(Args... args) {
    const auto named = [](const std::string& message) {
      return std::string(kName) + (kBackward ? "_backward: " : ": ") + message;
    };
    try {
      return function(args...);
    } catch (const std::bad_alloc&) {
      throw OutOfMemory(named("out of memory"));
    } catch (const std::exception& error) {
      const std::string message = message_of(error);
      if (message.find("out of memory") != std::string::npos ||
          message.find("can't allocate memory") != std::string::npos)
        throw OutOfMemory(named(message));
      throw std::runtime_error(named(message));
    }
  }
};

// Registration. An op with several backends is a struct Op with
//   kName, kSchemas        its name and the schemas of the op and, if it has one, of its backward
//   Operands, parse()      the operands in the schemas' order, checked and made contiguous
//   Outputs, Gradients     the results, allocated
//   forward<Backend>()     takes the schema's arguments, parses them, allocates the outputs and calls
//                          Backend::forward(operands, outputs), which fills in kernel parameters and runs the kernels
//   backward<Backend>()    likewise, with Backend::backward(operands, gradients)
template <typename Op, typename Library>
void define(Library& library) {
  for (const char* schema : Op::kSchemas) library.def(schema);
}
template <typename Op, typename Backend, typename Library>
void implement(Library& library) {
  using Forward = Named<Op::kName, false, &Op::template forward<Backend>>;
  library.impl(Op::kName, TORCH_BOX(&Forward::call));
  if constexpr (std::size(Op::kSchemas) > 1) {
    using Backward = Named<Op::kName, true, &Op::template backward<Backend>>;
    library.impl((std::string(Op::kName) + "_backward").c_str(), TORCH_BOX(&Backward::call));
  }
}

// Operands. The rows of a matrix are contiguous and may be any distance apart; all other operands are contiguous.
using torch::stable::contiguous;
inline OptTensor contiguous(const OptTensor& x) { return x ? OptTensor(torch::stable::contiguous(*x)) : x; }
inline Tensor with_contiguous_rows(const Tensor& x) {
  return x.dim() == 2 && x.size(1) > 1 && x.stride(1) != 1 ? torch::stable::contiguous(x) : x;
}
inline OptTensor with_contiguous_rows(const OptTensor& x) { return x ? OptTensor(with_contiguous_rows(*x)) : x; }

inline bool same_device(const Tensor& x, const Tensor& y) {
  return x.is_cpu() == y.is_cpu() && x.get_device_index() == y.get_device_index();
}

template <typename Sizes>
std::string text_of(const Sizes& sizes) {  // writes a negative size, which stands for any, as *
  std::string text;
  for (const int64_t size : sizes) text += (text.empty() ? "" : ", ") + (size < 0 ? "*" : std::to_string(size));
  return "[" + text + "]";
}

// Checks the dtype and shape of an operand, and that it is on the device of `like`. A size of -1 allows any size; an
// absent operand passes.
inline void check_operand(const OptTensor& x, const Tensor& like, ScalarType type, const Shape& shape,
                          const char* name) {
  if (!x) return;
  RECGRELA_CHECK(x->defined(), name, " must be a tensor, not None");
  bool fits = x->dim() == static_cast<int64_t>(shape.size()) && same_device(*x, like) && x->scalar_type() == type;
  for (size_t i = 0; fits && i < shape.size(); ++i) fits = shape[i] < 0 || x->size(i) == shape[i];
  RECGRELA_CHECK(fits, name, " must have the shape ", text_of(shape), ", the dtype ", torch::headeronly::toString(type),
                 " and the other operands' device; it has the shape ", text_of(x->sizes()), " and the dtype ",
                 torch::headeronly::toString(x->scalar_type()), same_device(*x, like) ? "" : ", on another device");
}

// Checks a state [B, ...] that the operator updates in place: the part of each sequence is contiguous, and parts may be
// any distance apart. It cannot be copied as an operand can.
inline void check_state(const Tensor& x, const Tensor& like, ScalarType type, const Shape& shape, const char* name) {
  check_operand(x, like, type, shape, name);
  int64_t part = 1;
  bool contiguous = true;
  for (int64_t i = x.dim() - 1; i > 0; --i) {
    contiguous = contiguous && (x.size(i) <= 1 || x.stride(i) == part);
    part *= x.size(i);
  }
  RECGRELA_CHECK(x.numel() == 0 || (contiguous && (x.size(0) <= 1 || x.stride(0) >= part)), name,
                 " must be contiguous but for its first dimension, and its parts must not overlap");
}

inline void check_cu_seqlens(const Tensor& cu_seqlens, const Tensor& like) {
  const ScalarType type = cu_seqlens.scalar_type();
  RECGRELA_CHECK(same_device(cu_seqlens, like) && cu_seqlens.dim() == 1 && cu_seqlens.size(0) >= 1 &&
                     (type == ScalarType::Int || type == ScalarType::Long),
                 "cu_seqlens must be a 1-D int32 or int64 tensor [B + 1] on the other operands' device");
}

// The dtype of parameters, states, sums and rotary tables.
inline ScalarType state_type(const Tensor& x) {
  return x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline constexpr char kDropout[] = "dropout";
inline constexpr const char* kDropoutSchema = "dropout(Tensor x, Tensor seed, float rate) -> Tensor";

// Rate of a dropout, rounded to a multiple of 2^-16. An element is dropped if its random number is below the threshold.
struct DropoutRate {
  uint32_t threshold;
  double scale;  // factor of the elements that are kept
};

// Checks a dropout of `numel` elements on the device of `like`. A rate of 0 needs no seed.
inline DropoutRate dropout_rate(double rate, const OptTensor& seed, int64_t num_seeds, const Tensor& like,
                                int64_t numel) {
  constexpr double kDraws = 65536, kIndices = 4294967296.0;
  RECGRELA_CHECK(rate >= 0 && rate < 1, "the dropout rate must be at least 0 and below 1, not ", rate);
  if (rate == 0) return {0, 1};
  RECGRELA_CHECK(seed && same_device(*seed, like) && seed->scalar_type() == ScalarType::Long &&
                     seed->numel() == num_seeds && (num_seeds == 1 || seed->stride(0) == 1),
                 "seed must be int64 on the operands' device and have ", num_seeds, " elements side by side");
  RECGRELA_CHECK(static_cast<double>(numel) <= kIndices, "dropout takes up to 2^32 elements, not ", numel,
                 "; split the batch");
  const double dropped = std::min(std::nearbyint(rate * kDraws), kDraws - 1);
  return {static_cast<uint32_t>(dropped), kDraws / (kDraws - dropped)};
}

// Results, uninitialized. An optional result that is not wanted has the shape [0].
inline Tensor make(const Tensor& like, const Shape& shape, std::optional<ScalarType> type = {}) {
  return torch::stable::new_empty(like, shape, type);
}
inline Tensor make_if(bool wanted, const Tensor& like, const Shape& shape, std::optional<ScalarType> type = {}) {
  return make(like, wanted ? shape : Shape{0}, type);
}
inline Tensor make_like(const Tensor& x) { return make(x, Shape(x.sizes().begin(), x.sizes().end())); }
// The gradient of an operand that may be absent.
inline Tensor make_gradient(const OptTensor& x, const Tensor& like) { return x ? make_like(*x) : make(like, {0}); }

// Pointers for the kernels; null for an absent operand and for a result that is not wanted.
template <typename T>
const T* data(const OptTensor& x) {
  return x ? static_cast<const T*>(x->const_data_ptr()) : nullptr;
}
template <typename T>
T* mutable_data(const Tensor& x) {
  const bool wanted = x.dim() != 1 || x.size(0) > 0;
  return wanted ? static_cast<T*>(x.mutable_data_ptr()) : nullptr;
}

}  // namespace recgrela::ops
