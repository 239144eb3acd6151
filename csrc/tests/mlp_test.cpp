// mlp against the CPU kernels in float64.
#include <cmath>
#include <cstring>

#include "cpu/mlp.h"
#include "kernels/mlp/params.h"
#include "tests/case.h"
#include "tests/cpu_reference.h"

namespace recgrela::tests {
namespace {

using cuda::MlpActivation;

struct MlpCase {
  DType type = DType::kFloat32;
  MlpActivation activation = MlpActivation::kGelu;
  double rate = 0;
  bool strided = false;
  int64_t rows = 0;
  int in = 64, hidden = 256, out = 64;
  int max_shared_bytes = 0;

  std::string name() const {
    static const char* const kNames[] = {"none", "relu", "silu", "gelu"};
    return std::string("mlp/") + name_of(type) + "/" + kNames[static_cast<int>(activation)] +
           (rate > 0 ? "/dropout" : "") + (strided ? "/strided" : "") +
           (max_shared_bytes ? "/little shared memory" : "") + "/" + std::to_string(in) + "-" + std::to_string(hidden) +
           "-" + std::to_string(out) + "/T=" + std::to_string(rows);
  }
  double tolerance() const { return type == DType::kFloat32 ? 2e-6 : type == DType::kFloat16 ? 2e-3 : 1.6e-2; }
  int64_t stride(int64_t width, int64_t more) const { return strided ? width + more * 16 / size_of(type) : width; }
};

// Rows and w1 are numbers of the type, so that hidden values near 0 have the right sign; the others are float32.
struct MlpData {
  Doubles x, d_y, w1, b1, w2, b2;
  int64_t seeds[2] = {123456789012345, -987654321098765};

  explicit MlpData(const MlpCase& c) {
    const double scale1 = 1 / std::sqrt(c.in), scale2 = 1 / std::sqrt(c.hidden);
    x = random_numbers(c.type, c.rows * c.in, 1.5, 1);
    d_y = random_numbers(c.type, c.rows * c.out, 1, 2);
    w1 = random_numbers(c.type, int64_t{c.hidden} * c.in, scale1, 3);
    b1 = random_numbers(DType::kFloat32, c.hidden, 0.5, 4);
    w2 = random_numbers(DType::kFloat32, int64_t{c.out} * c.hidden, scale2, 5);
    b2 = random_numbers(DType::kFloat32, c.out, 0.5, 6);
  }
};

uint32_t threshold_of(double rate) { return static_cast<uint32_t>(rate * 65536); }
double scale_of(double rate) { return 65536.0 / (65536 - threshold_of(rate)); }

// The finalizer of SplitMix64, as in csrc/ops/dropout.h.
uint64_t scatter_seed(uint64_t z) {
  z += 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

Named reference(const MlpCase& c, const MlpData& data) {
  cpu::MlpParams<double> p;
  p.num_rows = c.rows, p.in_features = c.in, p.hidden_features = c.hidden, p.out_features = c.out;
  p.x = {data.x.data(), c.in}, p.w1 = {data.w1.data(), c.in}, p.w2 = {data.w2.data(), c.hidden};
  p.b1 = data.b1.data(), p.b2 = data.b2.data();
  p.activation = static_cast<cpu::Activation>(c.activation);
  for (int i = 0; i < 2; ++i)
    (i ? p.dropout2 : p.dropout1) = {scatter_seed(static_cast<uint64_t>(data.seeds[i])), threshold_of(c.rate),
                                     scale_of(c.rate)};
  p.set_groups();
  Doubles y(c.rows * c.out), d_x(c.rows * c.in), gradients(p.num_groups * p.num_weights());
  p.y = {y.data(), c.out}, p.d_y = {data.d_y.data(), c.out}, p.d_x = {d_x.data(), c.in};
  p.gradients = gradients.data();
  const auto& kernels = cpu::mlp_kernels<double>();
  for (const bool backward : {false, true}) {
    cpu::WorkQueue queue(backward ? p.num_groups : p.num_blocks());
    p.queue = &queue;
    const Memory scratch(kernels.scratch(p, backward) * sizeof(double));
    (backward ? kernels.backward : kernels.forward)(p, reinterpret_cast<double*>(scratch.data));
  }
  const Doubles sum = sum_of_partials(gradients, p.num_weights());
  auto from = sum.begin();
  auto take = [&](int64_t size) {
    from += size;
    return Doubles(from - size, from);
  };
  Named out = {{"y", y}, {"d_x", d_x}};
  out.push_back({"d_w1", take(int64_t{c.hidden} * c.in)}), out.push_back({"d_w2", take(int64_t{c.out} * c.hidden)});
  out.push_back({"d_b1", take(c.hidden)}), out.push_back({"d_b2", take(c.out)});
  return out;
}

NamedTensors run(const MlpCase& c, const MlpData& data) {
  auto rows = [&](int width, int64_t more) { return Tensor(c.type, c.rows, width, c.stride(width, more)); };
  auto weights = [](int64_t rows, int64_t columns) { return Tensor(DType::kFloat32, rows, columns); };
  Tensor x = rows(c.in, 1), y = rows(c.out, 2), d_y = rows(c.out, 3), d_x = rows(c.in, 4);
  Tensor w1 = weights(c.hidden, c.in), b1 = weights(1, c.hidden), w2 = weights(c.out, c.hidden), b2 = weights(1, c.out);
  x.set(data.x), d_y.set(data.d_y), w1.set(data.w1), b1.set(data.b1), w2.set(data.w2), b2.set(data.b2);
  const Tensor d_w1 = weights(c.hidden, c.in), d_b1 = weights(1, c.hidden);
  const Tensor d_w2 = weights(c.out, c.hidden), d_b2 = weights(1, c.out);
  const Memory seeds(sizeof(data.seeds));
  std::memcpy(seeds.data, data.seeds, sizeof(data.seeds));

  cuda::MlpParams p;
  p.dtype = c.type, p.activation = c.activation, p.max_shared_bytes = c.max_shared_bytes;
  p.num_rows = c.rows, p.in = c.in, p.hidden = c.hidden, p.out = c.out;
  if (c.rate > 0)
    for (int i = 0; i < 2; ++i)
      (i ? p.dropout2 : p.dropout1) = {reinterpret_cast<const int64_t*>(seeds.data) + i, threshold_of(c.rate),
                                       static_cast<float>(scale_of(c.rate))};
  p.x = x.rows(), p.y = y.rows();
  p.w1 = w1.as<float>(), p.b1 = b1.as<float>(), p.w2 = w2.as<float>(), p.b2 = b2.as<float>();
  expect_success(cuda::mlp_forward(p, nullptr));
  p.d_y = d_y.rows(), p.d_x = d_x.rows();
  p.d_w1 = d_w1.as<float>(), p.d_b1 = d_b1.as<float>(), p.d_w2 = d_w2.as<float>(), p.d_b2 = d_b2.as<float>();
  const Memory workspace(cuda::mlp_backward_workspace(p));
  p.workspace = workspace.data;
  expect_success(cuda::mlp_backward(p, nullptr));
  expect_success(wait());
  expect_untouched_gaps({{"y", y}, {"d_x", d_x}});
  return {{"y", y}, {"d_x", d_x}, {"d_w1", d_w1}, {"d_w2", d_w2}, {"d_b1", d_b1}, {"d_b2", d_b2}};
}

void check(const MlpCase& c) {
  const MlpData data(c);
  const Named want = reference(c, data);
  const NamedTensors got = run(c, data);
  for (size_t i = 0; i < got.size(); ++i)
    expect_close(got[i].first, got[i].second.values(), want.at(i).second, c.tolerance());
}

void check_one_result(const MlpCase& c) {
  const MlpData data(c);
  expect_one_result([&] { return run(c, data); });
}

void add_cases(Cases& cases) {
  const MlpActivation activations[] = {MlpActivation::kNone, MlpActivation::kRelu, MlpActivation::kSilu,
                                       MlpActivation::kGelu};
  struct Sizes {
    int in, hidden, out;
  };
  for (const DType type : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
    auto add = [&](MlpActivation activation, Sizes sizes, int64_t rows) {
      MlpCase c;
      c.type = type, c.activation = activation, c.rows = rows;
      c.in = sizes.in, c.hidden = sizes.hidden, c.out = sizes.out;
      c.rate = cases.one_of(0.0, 0.25), c.strided = cases.one_of(0, 1);
      cases.add(c.name(), [c] { check(c); });
      return c;
    };
    for (const MlpActivation activation : activations)
      for (const int64_t rows : {1, 100})
        add(activation, {64, cases.one_of(64, 96, 256), 64}, rows + static_cast<int64_t>(activation));
    for (const int64_t rows : {0, 15, 16, 17, 65, 200}) add(MlpActivation::kGelu, {32, 48, 64}, rows);
    // hidden layers in groups, of odd sizes, and wide rows
    for (const Sizes sizes :
         {Sizes{64, 544, 32}, {64, 300, 48}, {48, 37, 16}, {64, 1, 64}, {128, 144, 128}, {96, 70, 112}})
      add(cases.one_of(MlpActivation::kGelu, MlpActivation::kSilu), sizes, 70);
    if (type != DType::kFloat32)
      for (const Sizes sizes : {Sizes{256, 288, 256}, {144, 50, 208}}) add(MlpActivation::kGelu, sizes, 40);
    for (const Sizes sizes : {Sizes{64, 256, 64}, {128, 96, 128}}) {
      MlpCase c;
      c.type = type, c.rows = 70, c.rate = 0.25, c.max_shared_bytes = 99 * 1024;  // as much as on many GPUs
      c.in = sizes.in, c.hidden = sizes.hidden, c.out = sizes.out;
      cases.add(c.name(), [c] { check(c); });
    }
    MlpCase c;
    c.type = type, c.rows = 150, c.rate = 0.1, c.hidden = 128, c.strided = true;
    cases.add(c.name() + "/schedules", [c] { check_one_result(c); });
    c.in = 128, c.rows = 70, c.hidden = 160;
    cases.add(c.name() + "/schedules", [c] { check_one_result(c); });
  }
}

const Registration registration(17, add_cases);

}  // namespace
}  // namespace recgrela::tests
