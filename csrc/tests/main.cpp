// Runs the CUDA kernels, on the SIMT host or on a GPU, against references in float64.
//   ops_test [--list] [--multiprocessors N] [text ...]
// runs the cases whose names contain every text; the SIMT host can have any number of multiprocessors.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <exception>

#include "tests/case.h"

namespace {

constexpr int kSkipped = 77;  // exit code without a GPU, as SKIP_RETURN_CODE in CMakeLists.txt

}  // namespace

int main(int argc, char** argv) {
  using namespace recgrela::tests;
  bool list = false;
  std::vector<std::string> texts;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument == "--list") {
      list = true;
    } else if (argument == "--multiprocessors") {
      const int count = i + 1 < argc ? std::atoi(argv[++i]) : 0;
      if (count < 1 || !set_multiprocessors(count)) {
        std::fprintf(stderr, "ops_test: --multiprocessors needs a positive number; a GPU's is fixed\n");
        return 2;
      }
    } else {
      texts.push_back(argument);
    }
  }
  if (const std::string why = skip_reason(); !list && !why.empty()) {
    std::printf("skipped: %s\n", why.c_str());
    return kSkipped;
  }
  int run = 0, failed = 0;
  for (const Case& c : registered_cases()) {
    if (!runs_here(c.name)) continue;
    auto has = [&](const std::string& text) { return c.name.find(text) != std::string::npos; };
    if (!std::all_of(texts.begin(), texts.end(), has)) continue;
    std::printf("%s%s", c.name.c_str(), list ? "\n" : " ");
    if (list) continue;
    std::fflush(stdout);
    outcome() = {};
    set_schedule(run++);
    const auto begin = std::chrono::steady_clock::now();
    try {
      c.run();
    } catch (const std::exception& e) {
      expect(false, e.what());
    }
    const std::chrono::duration<double> time = std::chrono::steady_clock::now() - begin;
    std::printf("%s (%.2f of the tolerance, %.2f s)\n", outcome().failed ? "  FAILED" : "ok", outcome().worst_error,
                time.count());
    failed += outcome().failed;
  }
  if (!list) std::printf("%d cases, %d failed\n", run, failed);
  return failed != 0 || (run == 0 && !list);
}
