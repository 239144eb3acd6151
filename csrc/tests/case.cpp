#include "tests/case.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

namespace recgrela::tests {
namespace {

struct Registered {
  uint64_t seed;
  void (*add)(Cases&);
};
std::vector<Registered>& registry() {
  static std::vector<Registered> registry;
  return registry;
}

}  // namespace

Registration::Registration(uint64_t seed, void (*add)(Cases&)) { registry().push_back({seed, add}); }

std::vector<Case> registered_cases() {
  std::vector<Case> all;
  for (const Registered& op : registry()) {
    Cases cases(op.seed);
    op.add(cases);
    std::move(cases.list.begin(), cases.list.end(), std::back_inserter(all));
  }
  std::stable_sort(all.begin(), all.end(), [](const Case& a, const Case& b) {
    return a.name.substr(0, a.name.find('/')) < b.name.substr(0, b.name.find('/'));
  });
  return all;
}

Outcome& outcome() {
  static Outcome outcome;
  return outcome;
}

void expect(bool holds, const std::string& what) {
  if (holds) return;
  if (!outcome().failed) std::printf("\n");
  outcome().failed = true;
  std::printf("    %s\n", what.c_str());
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
  outcome().worst_error = std::max(outcome().worst_error, error / bound);
  if (wrong == 0) return;
  char text[400];
  std::snprintf(text, sizeof(text),
                "%s: %zu of %zu wrong; first at %zu: got %.9g, want %.9g; worst at %zu: got %.9g, want %.9g; the "
                "largest is %.4g, the tolerance %.1e of it",
                tensor.c_str(), wrong, got.size(), first, got[first], want[first], worst, got[worst], want[worst],
                largest, tolerance);
  expect(false, text);
}

void expect_untouched_gaps(const NamedTensors& written) {
  for (const auto& [name, tensor] : written) expect(tensor.has_untouched_gaps(), name + " is written between its rows");
}

void expect_same_bytes(const NamedTensors& a, const NamedTensors& b, const std::string& when) {
  for (size_t i = 0; i < a.size(); ++i)
    expect(a[i].second.bytes() == b.at(i).second.bytes(), a[i].first + " is not the same " + when);
}

void expect_fault(const std::function<void()>& f, const std::string& message) {
  const std::string text = fault_of(f);
  expect(!text.empty(), "no error, expected: " + message);
  expect(text.empty() || text.find(message) != std::string::npos, "another error: " + text);
}

void expect_success(cudaError_t error) {
  if (error == cudaSuccess) error = wait();
  expect(error == cudaSuccess, "error " + std::to_string(error));
}

void expect_one_result(const std::function<NamedTensors()>& run) {
  set_schedule(0);
  const NamedTensors first = run();
  expect_same_bytes(first, run(), "in a second run");
  for (int schedule = 1; schedule < kSchedules; ++schedule) {
    set_schedule(schedule);
    expect_same_bytes(first, run(), "in another order of threads");
  }
}

void add_refusals(Cases& cases, const std::string& op, std::function<void(const void*, bool)> forward) {
  for (bool is_int64 : {true, false})
    cases.add(op + "/refusals/" + (is_int64 ? "int64" : "int32"), [=] {
      auto refuses = [&](const Lengths& offsets, const char* message) {
        const Integers malformed(offsets, is_int64);
        expect_fault([&] { forward(malformed.memory.data, is_int64); }, message);
      };
      refuses({1, 3, 7}, "cu_seqlens must start at 0");
      refuses({0, 3, 6}, "cu_seqlens must end at the number of rows");
      refuses({0, 8, 7}, "cu_seqlens must not decrease");
    });
}

}  // namespace recgrela::tests
