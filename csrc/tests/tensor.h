// Tensors of the tests: matrices in separate memory blocks, converted to and from double.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "kernels/common/params.h"

namespace recgrela::tests {

using cuda::DType;
using cuda::size_of;
using Doubles = std::vector<double>;
using Lengths = std::vector<int64_t>;
using Named = std::vector<std::pair<std::string, Doubles>>;

const char* name_of(DType type);
std::string text_of(const Lengths& lengths);
int64_t sum_of(const Lengths& lengths);
double largest_of(const Doubles& values);  // the largest magnitude

// Memory of exactly `bytes` bytes, all 0xff: NaN in every floating-point type. Sparse memory holds zeros and occupies
// only the pages that are accessed.
struct Memory {
  explicit Memory(size_t bytes, bool sparse = false);
  ~Memory();
  Memory(const Memory&) = delete;
  unsigned char* data;
  const size_t bytes;
  const bool sparse;
};

// A matrix with contiguous rows and any stride between them. Copies share the memory.
class Tensor {
 public:
  Tensor() = default;
  Tensor(DType type, int64_t rows, int64_t columns, int64_t stride = 0, bool sparse = false);
  Tensor columns(int64_t begin, int64_t end) const;

  void set(const Doubles& values);
  Doubles values() const;
  std::vector<unsigned char> bytes() const;
  bool has_untouched_gaps() const;  // the memory between rows is as it was allocated; true of sparse memory

  int64_t num_columns() const { return num_columns_; }
  bool present() const { return memory_ != nullptr; }
  void* data() const { return present() ? memory_->data + offset_ * size_of(type_) : nullptr; }
  template <typename T>
  T* as() const {
    return static_cast<T*>(data());
  }
  cuda::RowMatrix rows() const { return {data(), stride_}; }

 private:
  double get(int64_t i) const;
  DType type_ = DType::kFloat32;
  int64_t num_rows_ = 0, num_columns_ = 0, stride_ = 0, offset_ = 0;
  std::shared_ptr<Memory> memory_;
};
using NamedTensors = std::vector<std::pair<std::string, Tensor>>;

// A vector of integers in a separate memory block.
struct Integers {
  Integers(const Lengths& values, bool is_int64);
  Lengths values() const;  // of int64
  const bool is_int64;
  Memory memory;
};
Lengths offsets_of(const Lengths& lengths);

// Normally distributed numbers, rounded to the type.
Doubles random_numbers(DType type, int64_t count, double scale, uint64_t seed);

}  // namespace recgrela::tests
