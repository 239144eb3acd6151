// Checks and times the variants of an operator, whose first one is the default:
//   runner OP DTYPE ROUNDS BATCH NAME=LIBRARY ...
// Compares each variant's results with those of the default, then times a forward and a backward of every variant in
// turn. BATCH 0 takes the batches of cases.h. Prints a line of JSON for each case, direction and variant. Exits with 77
// if there is no GPU.
#include <dlfcn.h>

#include <algorithm>

#include "cases.h"

namespace recgrela::variants {
namespace {

constexpr int kSkipped = 77;
constexpr int64_t kCheckedBatch = 16;

template <typename Op>
struct Variant {
  std::string name;
  Library<Op> library;
};

template <typename F>
F find(void* library, const char* name) {
  void* const found = dlsym(library, name);
  if (!found) std::fprintf(stderr, "%s\n", dlerror()), std::exit(1);
  return reinterpret_cast<F>(found);
}

template <typename Op>
Variant<Op> load(const std::string& argument) {
  const size_t sign = argument.rfind('=');
  void* const library = dlopen(argument.substr(sign + 1).c_str(), RTLD_LAZY | RTLD_LOCAL);
  if (!library) std::fprintf(stderr, "%s\n", dlerror()), std::exit(1);
  Library<Op> functions;
  functions.workspace = find<decltype(functions.workspace)>(library, "recgrela_workspace");
  functions.run = find<decltype(functions.run)>(library, "recgrela_run");
  return {argument.substr(0, sign), functions};
}

// A call of a variant, with its workspace.
template <typename Op>
std::function<void()> bind(const Variant<Op>& variant, typename Op::Params p, bool backward) {
  const Memory workspace(variant.library.workspace(p, backward));
  p.workspace = workspace.data();
  return [=] {
    (void)workspace.data();  // keeps it
    require(variant.library.run(p, backward), variant.name.c_str());
  };
}

// Largest difference of a result, by norm, relative to the norm of the default's.
double difference(const std::vector<std::vector<float>>& got, const std::vector<std::vector<float>>& want) {
  double largest = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    double error = 0, norm = 0;
    for (size_t j = 0; j < want[i].size(); ++j) {
      const double x = want[i][j], d = got[i][j] - x;
      error += d * d, norm += x * x;
    }
    const double relative = std::sqrt(error / norm);
    if (!(relative <= largest)) largest = relative;  // NaN too
    if (std::isnan(largest)) return largest;
  }
  return largest;
}

template <typename Op>
std::vector<double> check(const std::vector<Variant<Op>>& variants, Case c, int64_t batch) {
  c.batch = std::min(c.batch, batch);
  Tensors tensors;
  const Call<Op> call = make_call(Op{}, c, tensors);
  std::vector<std::vector<float>> want;
  std::vector<double> differences;
  for (const auto& variant : variants) {
    tensors.clear();
    bind(variant, call.forward, false)();
    wait();
    bind(variant, call.backward, true)();
    wait();
    const auto got = tensors.values();
    if (want.empty()) want = got;
    differences.push_back(difference(got, want));
  }
  return differences;
}

template <typename Op>
void time(const std::vector<Variant<Op>>& variants, const Case& c, int rounds, const std::vector<double>& differences) {
  Tensors tensors;
  const Call<Op> call = make_call(Op{}, c, tensors);
  for (bool backward : {false, true}) {
    std::vector<std::function<void()>> calls;
    for (const auto& variant : variants)
      calls.push_back(bind(variant, backward ? call.backward : call.forward, backward));
    for (const auto& run : calls) run();
    wait();
    std::vector<std::vector<float>> us(variants.size());
    for (int round = 0; round < rounds; ++round) {
      const size_t first = round % calls.size();  // each round begins with another variant
      std::vector<std::function<void()>> order(calls.begin() + first, calls.end());
      order.insert(order.end(), calls.begin(), calls.begin() + first);
      const std::vector<float> times = time_each(order);
      for (size_t i = 0; i < times.size(); ++i) us[(first + i) % calls.size()].push_back(times[i]);
    }
    for (size_t i = 0; i < variants.size(); ++i) {
      std::sort(us[i].begin(), us[i].end());
      const double d = differences[i];
      std::printf(
          "{\"case\": \"%s\", \"dtype\": \"%s\", \"direction\": \"%s\", \"variant\": \"%s\", \"us\": %.2f, "
          "\"min_us\": %.2f, \"difference\": %s}\n",
          c.name.c_str(), name_of(c.dtype), backward ? "backward" : "forward", variants[i].name.c_str(),
          us[i][us[i].size() / 2], us[i][0], std::isnan(d) ? "null" : std::to_string(d).c_str());
    }
    std::fflush(stdout);
  }
}

template <typename Op>
int run(Op op, int argc, char** argv) {
  const std::string dtype = argv[2];
  const int rounds = std::atoi(argv[3]);
  const int64_t batch = std::atoll(argv[4]);
  std::vector<Variant<Op>> variants;
  for (int i = 5; i < argc; ++i) variants.push_back(load<Op>(argv[i]));
  for (DType type : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
    if (dtype != name_of(type)) continue;
    for (Case c : cases_of(op, type)) {
      if (batch) c.batch = batch, c.length = std::min<int64_t>(c.length, 40);
      const auto differences = check(variants, c, kCheckedBatch);
      time(variants, c, rounds, differences);
    }
  }
  return 0;
}

}  // namespace
}  // namespace recgrela::variants

int main(int argc, char** argv) {
  using namespace recgrela::variants;
  if (argc < 6) {
    std::fprintf(stderr, "usage: runner OP DTYPE ROUNDS BATCH NAME=LIBRARY ...\n");
    return 2;
  }
  if (!has_device()) return kSkipped;
  const std::string op = argv[1];
  if (op == "gated_rela") return run(gated_rela{}, argc, argv);
  if (op == "selective_scan") return run(selective_scan{}, argc, argv);
  if (op == "linear_scan") return run(linear_scan{}, argc, argv);
  if (op == "causal_conv1d") return run(causal_conv1d{}, argc, argv);
  std::fprintf(stderr, "%s is no operator\n", op.c_str());
  return 2;
}
