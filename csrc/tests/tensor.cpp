#include "tests/tensor.h"

#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <new>
#include <random>

#include "tests/backend.h"

namespace recgrela::tests {

const char* name_of(DType type) {
  return type == DType::kFloat32 ? "float32" : type == DType::kFloat16 ? "float16" : "bfloat16";
}

std::string text_of(const Lengths& lengths) {
  std::string text;
  for (size_t i = 0; i < lengths.size();) {
    size_t n = i;
    while (n < lengths.size() && lengths[n] == lengths[i]) ++n;
    text += (i ? "," : "") + std::to_string(lengths[i]);
    if (n - i > 1) text += "(x" + std::to_string(n - i) + ")";
    i = n;
  }
  return text.empty() ? "none" : text;
}

int64_t sum_of(const Lengths& lengths) {
  int64_t sum = 0;
  for (int64_t n : lengths) sum += n;
  return sum;
}

double largest_of(const Doubles& values) {
  double largest = 0;
  for (double x : values) largest = std::max(largest, std::fabs(x));
  return largest;
}

Memory::Memory(size_t bytes, bool sparse) : bytes(bytes), sparse(sparse) {
  void* p = nullptr;
  if (sparse) {
    // The system call itself: the sanitizer's mmap would fill as much shadow memory.
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    p = reinterpret_cast<void*>(syscall(SYS_mmap, nullptr, bytes, PROT_READ | PROT_WRITE, flags, -1, 0));
    if (p == MAP_FAILED) throw std::bad_alloc();
  } else {
    p = allocate(bytes);
    if (bytes) std::memset(p, 0xff, bytes);
  }
  data = static_cast<unsigned char*>(p);
}
Memory::~Memory() {
  if (sparse) {
    syscall(SYS_munmap, data, bytes);
  } else {
    release(data);
  }
}

Tensor::Tensor(DType type, int64_t rows, int64_t columns, int64_t stride, bool sparse)
    : type_(type), num_rows_(rows), num_columns_(columns), stride_(stride ? stride : columns) {
  const int64_t elements = rows ? (rows - 1) * stride_ + columns : 0;
  memory_ = std::make_shared<Memory>(elements * size_of(type), sparse);
}

Tensor Tensor::columns(int64_t begin, int64_t end) const {
  Tensor part = *this;
  part.offset_ += begin;
  part.num_columns_ = end - begin;
  return part;
}

double Tensor::get(int64_t i) const {
  if (type_ == DType::kFloat32) return static_cast<const float*>(data())[i];
  return type_ == DType::kFloat16 ? cuda::to_float(static_cast<const cuda::fp16*>(data())[i])
                                  : cuda::to_float(static_cast<const cuda::bf16*>(data())[i]);
}

void Tensor::set(const Doubles& values) {
  for (int64_t r = 0; r < num_rows_; ++r)
    for (int64_t c = 0; c < num_columns_; ++c) {
      const int64_t i = r * stride_ + c;
      const float x = static_cast<float>(values.at(r * num_columns_ + c));
      if (type_ == DType::kFloat32) static_cast<float*>(data())[i] = x;
      if (type_ == DType::kFloat16) static_cast<cuda::fp16*>(data())[i] = cuda::from_float<cuda::fp16>(x);
      if (type_ == DType::kBFloat16) static_cast<cuda::bf16*>(data())[i] = cuda::from_float<cuda::bf16>(x);
    }
}

Doubles Tensor::values() const {
  Doubles values;
  for (int64_t r = 0; r < num_rows_; ++r)
    for (int64_t c = 0; c < num_columns_; ++c) values.push_back(get(r * stride_ + c));
  return values;
}

std::vector<unsigned char> Tensor::bytes() const {
  std::vector<unsigned char> bytes;
  const auto* p = static_cast<const unsigned char*>(data());
  const int64_t size = size_of(type_);
  for (int64_t r = 0; r < num_rows_; ++r)
    bytes.insert(bytes.end(), p + r * stride_ * size, p + (r * stride_ + num_columns_) * size);
  return bytes;
}

bool Tensor::has_untouched_gaps() const {
  if (!present() || memory_->sparse) return true;
  const auto* p = static_cast<const unsigned char*>(data());
  const int64_t size = size_of(type_);
  for (int64_t r = 0; r + 1 < num_rows_; ++r)
    for (int64_t i = (r * stride_ + num_columns_) * size; i < (r + 1) * stride_ * size; ++i)
      if (p[i] != 0xff) return false;
  return true;
}

Integers::Integers(const Lengths& values, bool is_int64)
    : is_int64(is_int64), memory(values.size() * (is_int64 ? 8 : 4)) {
  for (size_t i = 0; i < values.size(); ++i) {
    if (is_int64) {
      reinterpret_cast<int64_t*>(memory.data)[i] = values[i];
    } else {
      reinterpret_cast<int32_t*>(memory.data)[i] = static_cast<int32_t>(values[i]);
    }
  }
}
Lengths Integers::values() const {
  const auto* p = reinterpret_cast<const int64_t*>(memory.data);
  return {p, p + memory.bytes / 8};
}

Lengths offsets_of(const Lengths& lengths) {
  Lengths offsets{0};
  for (int64_t n : lengths) offsets.push_back(offsets.back() + n);
  return offsets;
}

Doubles random_numbers(DType type, int64_t count, double scale, uint64_t seed) {
  std::mt19937_64 source(seed);
  std::normal_distribution<double> draw(0, scale);
  Tensor rounded(type, 1, count);
  Doubles values(count);
  for (double& x : values) x = draw(source);
  rounded.set(values);
  return rounded.values();
}

}  // namespace recgrela::tests
