// Cases of the tests of the CUDA kernels: registration and expectations.
#pragma once

#include <functional>
#include <random>
#include <string>
#include <vector>

#include "tests/backend.h"
#include "tests/tensor.h"

namespace recgrela::tests {

struct Case {
  std::string name;
  std::function<void()> run;
};

// Collects the cases of an operator, and draws their options at random.
class Cases {
 public:
  explicit Cases(uint64_t seed) : random(static_cast<uint32_t>(seed)) {}

  void add(std::string name, std::function<void()> run) { list.push_back({std::move(name), std::move(run)}); }
  template <typename... T>
  auto one_of(T... choices) {
    const std::common_type_t<T...> all[] = {choices...};
    return all[random() % sizeof...(choices)];
  }

  std::mt19937 random;
  std::vector<Case> list;
};

// Registers the cases of an operator. Each test has one as a static variable.
struct Registration {
  Registration(uint64_t seed, void (*add)(Cases&));
};
std::vector<Case> registered_cases();

// Each expectation reports to the current case.
void expect(bool holds, const std::string& what);
// The tolerance is relative to the largest magnitude wanted, or to `scale` if that is larger.
void expect_close(const std::string& tensor, const Doubles& got, const Doubles& want, double tolerance,
                  double scale = 0);
void expect_untouched_gaps(const NamedTensors& written);  // the memory between the rows of each tensor
void expect_same_bytes(const NamedTensors& a, const NamedTensors& b, const std::string& when);
// Expects f to fail with an error that contains `message`.
void expect_fault(const std::function<void()>& f, const std::string& message);
void expect_success(cudaError_t error);

// Expects `run` to return the same bytes in a second run and in every order of threads.
void expect_one_result(const std::function<NamedTensors()>& run);
// Adds a case that expects forward(offsets, is_int64), on sequences of 3 and 4 rows, to refuse malformed offsets.
void add_refusals(Cases& cases, const std::string& op, std::function<void(const void*, bool)> forward);

// Result of the current case.
struct Outcome {
  bool failed = false;
  double worst_error = 0;  // relative to the tolerance
};
Outcome& outcome();

}  // namespace recgrela::tests
