// Runs the CUDA kernels, on the SIMT host or on a GPU, against the CPU kernels in float64.
//   ops_test [--list] [part of a name ...]   cases whose names have all the parts
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <random>

#include "tests/case.h"

namespace recgrela::tests {
namespace {

constexpr int kSkipped = 77;  // the exit code, known to CMakeLists.txt

bool case_failed = false;
double worst_error = 0;  // in tolerances

}  // namespace

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

Memory::Memory(size_t bytes, bool sparse) : bytes(bytes), sparse(sparse) {
  void* p = nullptr;
  if (sparse) {
    // The system's own call: the sanitizer's would fill as much shadow memory.
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

bool Tensor::gaps_are_untouched() const {
  const auto* p = static_cast<const unsigned char*>(data());
  const int64_t size = size_of(type_);
  for (int64_t r = 0; r + 1 < num_rows_; ++r)
    for (int64_t i = (r * stride_ + num_columns_) * size; i < (r + 1) * stride_ * size; ++i)
      if (p[i] != 0xff) return false;
  return true;
}

Integers::Integers(const Lengths& values, bool wide) : wide(wide), memory(values.size() * (wide ? 8 : 4)) {
  for (size_t i = 0; i < values.size(); ++i) {
    if (wide) {
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

// Near both ends most of the time: parts shorter than a convolution are the hard ones.
Cuts random_cuts(const Lengths& lengths, uint64_t seed) {
  std::mt19937_64 source(seed);
  Cuts cuts(kParts, lengths);
  for (size_t s = 0; s < lengths.size(); ++s) {
    int64_t n = lengths[s];
    for (int part = kParts - 2; part >= 0; --part) {
      const int64_t choices[] = {0, 1, 2, 3, n / 2, n - 2, n - 1, n, n / 3};
      cuts[part][s] = n = std::clamp<int64_t>(choices[source() % std::size(choices)], 0, n);
    }
  }
  return cuts;
}
Lengths part_of(const Lengths& lengths, const Cuts& cuts, int part) {
  Lengths out;
  for (size_t s = 0; s < lengths.size(); ++s) out.push_back(cuts[part][s] - (part ? cuts[part - 1][s] : 0));
  return out;
}
Doubles part_of(const Doubles& rows, int64_t columns, const Lengths& lengths, const Cuts& cuts, int part) {
  Doubles out;
  int64_t row = 0;
  for (size_t s = 0; s < lengths.size(); row += lengths[s++]) {
    const int64_t begin = row + (part ? cuts[part - 1][s] : 0), end = row + cuts[part][s];
    out.insert(out.end(), rows.begin() + begin * columns, rows.begin() + end * columns);
  }
  return out;
}
Doubles joined(const std::vector<Doubles>& parts, int64_t columns, const Lengths& lengths, const Cuts& cuts) {
  Doubles out;
  std::vector<int64_t> next(parts.size());
  for (size_t s = 0; s < lengths.size(); ++s)
    for (int part = 0; part < kParts; ++part) {
      const auto from = parts[part].begin() + next[part];
      const int64_t count = (cuts[part][s] - (part ? cuts[part - 1][s] : 0)) * columns;
      out.insert(out.end(), from, from + count);
      next[part] += count;
    }
  return out;
}
Doubles sum_of(const std::vector<Doubles>& parts) {
  Doubles sum(parts[0].size());
  for (const Doubles& part : parts)
    for (size_t i = 0; i < sum.size(); ++i) sum[i] += part.at(i);
  return sum;
}

void expect(bool holds, const std::string& what) {
  if (holds) return;
  if (!case_failed) std::printf("\n");
  case_failed = true;
  std::printf("    %s\n", what.c_str());
}

double largest_of(const Doubles& values) {
  double largest = 0;
  for (double x : values) largest = std::max(largest, std::fabs(x));
  return largest;
}

void expect_close(const std::string& tensor, const Doubles& got, const Doubles& want, double tolerance, double scale) {
  expect(got.size() == want.size(), tensor + " has another size");
  if (got.size() != want.size()) return;
  const double largest = std::max(largest_of(want), scale);
  const double bound = tolerance * largest + 1e-30;
  size_t wrong = 0, first = 0, worst = 0;
  double error = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    const double e = std::fabs(got[i] - want[i]);
    if (!(e <= bound) && wrong++ == 0) first = i;
    if (std::isnan(e) || e > error) worst = i, error = std::isnan(e) ? INFINITY : e;
  }
  worst_error = std::max(worst_error, error / bound);
  if (wrong == 0) return;
  char text[400];
  std::snprintf(text, sizeof(text),
                "%s: %zu of %zu wrong; first at %zu: got %.9g, want %.9g; worst at %zu: got %.9g, want %.9g; the "
                "largest is %.4g, the tolerance %.1e of it",
                tensor.c_str(), wrong, got.size(), first, got[first], want[first], worst, got[worst], want[worst],
                tolerance, largest);
  expect(false, text);
}

void expect_same_bytes(const NamedTensors& a, const NamedTensors& b, const std::string& when) {
  for (size_t i = 0; i < a.size(); ++i)
    expect(a[i].second.bytes() == b.at(i).second.bytes(), a[i].first + " is not the same " + when);
}

void expect_fault(const std::function<void()>& f, const std::string& part) {
  const std::string text = fault_of(f);
  expect(!text.empty(), "no error, where one was to come: " + part);
  expect(text.empty() || text.find(part) != std::string::npos, "another error: " + text);
}

void expect_success(cudaError_t error) {
  if (error == cudaSuccess) error = wait();
  expect(error == cudaSuccess, "error " + std::to_string(error));
}

}  // namespace recgrela::tests

int main(int argc, char** argv) {
  using namespace recgrela::tests;
  std::vector<Case> cases;
  add_causal_conv1d(cases);
  add_gated_rela(cases);
  add_linear_scan(cases);
  add_selective_scan(cases);
  bool list = false;
  std::vector<std::string> parts;
  for (int i = 1; i < argc; ++i) {
    if (std::string(argv[i]) == "--list") {
      list = true;
    } else {
      parts.push_back(argv[i]);
    }
  }
  if (const std::string why = obstacle(); !list && !why.empty()) {
    std::printf("skipped: %s\n", why.c_str());
    return kSkipped;
  }
  int run = 0, failed = 0;
  for (const Case& c : cases) {
    if (!runs_here(c.name)) continue;
    auto has = [&](const std::string& part) { return c.name.find(part) != std::string::npos; };
    if (!std::all_of(parts.begin(), parts.end(), has)) continue;
    std::printf("%s%s", c.name.c_str(), list ? "\n" : " ");
    if (list) continue;
    std::fflush(stdout);
    case_failed = false, worst_error = 0;
    set_schedule(run++);
    const auto begin = std::chrono::steady_clock::now();
    try {
      c.run();
    } catch (const std::exception& e) {
      expect(false, e.what());
    }
    const std::chrono::duration<double> time = std::chrono::steady_clock::now() - begin;
    std::printf("%s (%.2f of the tolerance, %.2f s)\n", case_failed ? "  FAILED" : "ok", worst_error, time.count());
    failed += case_failed;
  }
  if (!list) std::printf("%d cases, %d failed\n", run, failed);
  return failed != 0 || (run == 0 && !list);
}
