// What the tests of the CUDA kernels share: tensors in memory of their own, random numbers, comparison.
#pragma once

#include <cstdint>
#include <cmath>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "kernels/common/params.h"
#include "tests/place.h"

namespace recgrela::tests {

using cuda::DType;
using cuda::size_of;
using Doubles = std::vector<double>;
using Lengths = std::vector<int64_t>;
using Named = std::vector<std::pair<std::string, Doubles>>;

struct Case {
  std::string name;
  std::function<void()> run;
};
void add_causal_conv1d(std::vector<Case>& cases);
void add_gated_rela(std::vector<Case>& cases);
void add_linear_scan(std::vector<Case>& cases);
void add_selective_scan(std::vector<Case>& cases);

const char* name_of(DType type);
std::string text_of(const Lengths& lengths);
int64_t sum_of(const Lengths& lengths);

// Memory of exactly so many bytes, all 0xff: NaN in every floating-point type.
struct Memory {
  explicit Memory(size_t bytes, bool sparse = false);  // sparse: only what is touched is there; zeros
  ~Memory();
  Memory(const Memory&) = delete;
  unsigned char* data;
  const size_t bytes;
  const bool sparse;
};

// A matrix whose rows may be further apart than they are long.
class Tensor {
 public:
  Tensor() = default;
  Tensor(DType type, int64_t rows, int64_t columns, int64_t stride = 0, bool sparse = false);
  Tensor columns(int64_t begin, int64_t end) const;  // shares the memory

  void set(const Doubles& values);
  Doubles values() const;
  std::vector<unsigned char> bytes() const;
  bool gaps_are_untouched() const;  // of a tensor that was written to row by row

  bool present() const { return memory_ != nullptr; }
  void* data() const { return present() ? memory_->data + offset_ * size_of(type_) : nullptr; }
  cuda::RowMatrix rows() const { return {data(), stride_}; }

 private:
  double get(int64_t i) const;
  DType type_ = DType::kFloat32;
  int64_t num_rows_ = 0, num_columns_ = 0, stride_ = 0, offset_ = 0;
  std::shared_ptr<Memory> memory_;
};
using NamedTensors = std::vector<std::pair<std::string, Tensor>>;

// A vector of integers in memory of its own.
struct Integers {
  Integers(const Lengths& values, bool wide);
  Lengths values() const;
  const bool wide;
  Memory memory;
};
Lengths offsets_of(const Lengths& lengths);

// Normally distributed, of the type's precision.
Doubles random_numbers(DType type, int64_t count, double scale, uint64_t seed);

// Sequences cut into kParts: where each part ends, by part and sequence.
constexpr int kParts = 3;
using Cuts = std::vector<Lengths>;
Cuts random_cuts(const Lengths& lengths, uint64_t seed);
Lengths part_of(const Lengths& lengths, const Cuts& cuts, int part);
Doubles part_of(const Doubles& rows, int64_t columns, const Lengths& lengths, const Cuts& cuts, int part);
Doubles joined(const std::vector<Doubles>& parts, int64_t columns, const Lengths& lengths, const Cuts& cuts);
Doubles sum_of(const std::vector<Doubles>& parts);

// Reports to the case that runs. The tolerance is in parts of the largest magnitude wanted, or of `scale` if that is
// larger.
void expect_close(const std::string& tensor, const Doubles& got, const Doubles& want, double tolerance,
                  double scale = 0);
double largest_of(const Doubles& values);
void expect(bool holds, const std::string& what);
void expect_same_bytes(const NamedTensors& a, const NamedTensors& b, const std::string& when);
void expect_fault(const std::function<void()>& f, const std::string& part);  // an error with this text
void expect_success(cudaError_t error);

}  // namespace recgrela::tests
