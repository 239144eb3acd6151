// mlp_block against a computation in float64.
#include <cmath>

#include "kernels/mlp/params.h"
#include "tests/case.h"
#include "tests/dropout_reference.h"

namespace recgrela::tests {
namespace {

using cuda::MlpActivation;

constexpr double kEps = 1e-5, kRate = 0.25, kPathRate = 0.4;

struct MlpBlockCase {
  DType type = DType::kFloat32;
  MlpActivation activation = MlpActivation::kGelu;
  int64_t rows = 0;
  int width = 64, hidden = 256;
  bool branch = true, dropout = false, path = false, sequences = false, strided = false;
  bool far = false;  // rows with large means, and a norm some of whose weights are 0 or large
  int max_shared_bytes = 0;

  std::string name() const {
    static const char* const kNames[] = {"none", "relu", "silu", "gelu"};
    return std::string("mlp_block/") + name_of(type) + "/" + kNames[static_cast<int>(activation)] +
           "/T=" + std::to_string(rows) + "/D=" + std::to_string(width) + "/F=" + std::to_string(hidden) +
           (branch ? "" : "/no z") + (dropout ? "/drop" : "") + (path ? "/path" : "") +
           (sequences ? "/sequences" : "") + (strided ? "/strided" : "") + (far ? "/far" : "") +
           (max_shared_bytes ? "/little shared memory" : "");
  }
  double tolerance() const { return type == DType::kFloat32 ? 4e-6 : type == DType::kFloat16 ? 2e-3 : 1.6e-2; }
  int64_t stride(int64_t more) const { return strided ? width + 8 * more : width; }
  // The gradient of the branch is that of the sum unless it is scaled or has another type.
  bool has_d_branch() const { return branch && (path || type != DType::kFloat32); }
};

struct MlpBlockData {
  Doubles x, branch, d_y, norm_weight, norm_bias, w1, b1, w2, b2;
  Lengths sequence, seed = {-3141592653589793, 2718281828459045, 123456789012345};

  explicit MlpBlockData(const MlpBlockCase& c) {
    const int64_t n = c.rows * c.width, weights = int64_t{c.hidden} * c.width;
    auto floats = [](int64_t count, double scale, uint64_t seed) {
      return random_numbers(DType::kFloat32, count, scale, seed);
    };
    x = floats(n, 1, 1), branch = random_numbers(c.type, n, 1, 2), d_y = floats(n, 1, 3);
    for (double& value : x) value += c.far ? 8 : 0.5;
    norm_weight = floats(c.width, 0.5, 4), norm_bias = floats(c.width, 0.5, 5);
    for (int i = 0; c.far && i < c.width; ++i) norm_weight[i] *= i % 3 == 0 ? 0 : i % 3 == 1 ? 1 : 8;
    w1 = floats(weights, 1.5 / std::sqrt(c.width), 6), b1 = floats(c.hidden, 0.5, 7);
    w2 = floats(weights, 1.5 / std::sqrt(c.hidden), 8), b2 = floats(c.width, 0.5, 9);
    for (int64_t row = 0; row < c.rows; ++row) sequence.push_back(row / 3);
  }
};

// The activation, and its slope.
double activate(MlpActivation activation, double x, double& slope) {
  const double pi = std::acos(-1.0), sigmoid = 1 / (1 + std::exp(-x)), cdf = std::erfc(-x / std::sqrt(2)) / 2;
  switch (activation) {
    case MlpActivation::kRelu:
      slope = x > 0;
      return std::max(x, 0.0);
    case MlpActivation::kSilu:
      slope = sigmoid * (1 + x * (1 - sigmoid));
      return x * sigmoid;
    case MlpActivation::kGelu:
      slope = cdf + x * std::exp(-x * x / 2) / std::sqrt(2 * pi);
      return x * cdf;
    default:
      slope = 1;
      return x;
  }
}

Named reference(const MlpBlockCase& c, const MlpBlockData& data) {
  const int width = c.width, hidden = c.hidden;
  const int64_t n = c.rows * width, weights = int64_t{hidden} * width;
  Doubles y(n), d_x(n), d_branch(n), d_norm_weight(width), d_norm_bias(width);
  Doubles d_w1(weights), d_b1(hidden), d_w2(weights), d_b2(width);
  const DropoutReference path(c.path ? kPathRate : 0, data.seed[0]);
  const DropoutReference drop1(c.dropout ? kRate : 0, data.seed[1]), drop2(c.dropout ? kRate : 0, data.seed[2]);
  for (int64_t row = 0; row < c.rows; ++row) {
    const double* const d_y = &data.d_y[row * width];
    const double path_factor = path.factor(c.sequences ? data.sequence[row] : row);
    Doubles s(width), normed(width), u(width), d_z(width), d_u(width), out(width);
    double mean = 0, variance = 0;
    for (int i = 0; i < width; ++i) {
      s[i] = data.x[row * width + i] + (c.branch ? path_factor * data.branch[row * width + i] : 0);
      mean += s[i] / width;
    }
    for (const double value : s) variance += (value - mean) * (value - mean) / width;
    const double factor = 1 / std::sqrt(variance + kEps);
    for (int i = 0; i < width; ++i) {
      normed[i] = (s[i] - mean) * factor;
      u[i] = normed[i] * data.norm_weight[i] + data.norm_bias[i];
      out[i] = data.b2[i];
      d_z[i] = d_y[i] * drop2.factor(row * width + i);
      d_b2[i] += d_z[i];
    }
    for (int f = 0; f < hidden; ++f) {
      double before = data.b1[f], slope, d_h = 0;
      for (int i = 0; i < width; ++i) before += u[i] * data.w1[f * width + i];
      const double keep = drop1.factor(row * ((hidden + 15) / 16 * 16) + f),
                   h = activate(c.activation, before, slope) * keep;
      for (int i = 0; i < width; ++i) {
        out[i] += h * data.w2[i * hidden + f];
        d_h += d_z[i] * data.w2[i * hidden + f];
        d_w2[i * hidden + f] += d_z[i] * h;
      }
      d_h *= slope * keep;
      d_b1[f] += d_h;
      for (int i = 0; i < width; ++i) {
        d_w1[f * width + i] += d_h * u[i];
        d_u[i] += d_h * data.w1[f * width + i];
      }
    }
    double sum = 0, product = 0;
    for (int i = 0; i < width; ++i) {
      d_norm_weight[i] += d_u[i] * normed[i], d_norm_bias[i] += d_u[i];
      d_u[i] *= data.norm_weight[i];
      sum += d_u[i] / width, product += d_u[i] * normed[i] / width;
    }
    for (int i = 0; i < width; ++i) {
      const int64_t at = row * width + i;
      y[at] = s[i] + out[i] * drop2.factor(at);
      d_x[at] = factor * (d_u[i] - sum - normed[i] * product) + d_y[i];
      d_branch[at] = d_x[at] * path_factor;
    }
  }
  return {{"y", y},
          {"d_x", d_x},
          {"d_norm_weight", d_norm_weight},
          {"d_norm_bias", d_norm_bias},
          {"d_w1", d_w1},
          {"d_b1", d_b1},
          {"d_w2", d_w2},
          {"d_b2", d_b2},
          {"d_branch", d_branch}};
}

NamedTensors run(const MlpBlockCase& c, const MlpBlockData& data) {
  auto rows = [&](DType type, int64_t more) { return Tensor(type, c.rows, c.width, c.stride(more)); };
  auto parameter = [](int64_t rows, int64_t columns, const Doubles& values) {
    Tensor t(DType::kFloat32, rows, columns);
    if (!values.empty()) t.set(values);
    return t;
  };
  Tensor x = rows(DType::kFloat32, 1), d_y = rows(DType::kFloat32, 2), branch;
  const Tensor y = rows(DType::kFloat32, 3), d_x = rows(DType::kFloat32, 1);
  x.set(data.x), d_y.set(data.d_y);
  Tensor sum, d_branch;
  if (c.branch) branch = rows(c.type, 1), branch.set(data.branch), sum = rows(DType::kFloat32, 2);
  if (c.has_d_branch()) d_branch = rows(c.type, 2);
  const Tensor norm_weight = parameter(1, c.width, data.norm_weight), norm_bias = parameter(1, c.width, data.norm_bias);
  const Tensor w1 = parameter(c.hidden, c.width, data.w1), b1 = parameter(1, c.hidden, data.b1);
  const Tensor w2 = parameter(c.width, c.hidden, data.w2), b2 = parameter(1, c.width, data.b2);
  const Tensor d_norm_weight = parameter(1, c.width, {}), d_norm_bias = parameter(1, c.width, {});
  const Tensor d_w1 = parameter(c.hidden, c.width, {}), d_b1 = parameter(1, c.hidden, {});
  const Tensor d_w2 = parameter(c.width, c.hidden, {}), d_b2 = parameter(1, c.width, {});
  const Integers sequence(data.sequence, true), seed(data.seed, true);
  const auto* const seeds = reinterpret_cast<const int64_t*>(seed.memory.data);

  cuda::MlpBlockParams p;
  p.dtype = c.type, p.activation = c.activation, p.max_shared_bytes = c.max_shared_bytes;
  p.num_rows = c.rows, p.in = p.out = c.width, p.hidden = c.hidden, p.eps = static_cast<float>(kEps);
  if (c.path) p.drop_path = DropoutReference(kPathRate, data.seed[0]).params(seeds);
  if (c.dropout) {
    p.dropout1 = DropoutReference(kRate, data.seed[1]).params(seeds + 1);
    p.dropout2 = DropoutReference(kRate, data.seed[2]).params(seeds + 2);
  }
  if (c.sequences) p.sequence = reinterpret_cast<const int64_t*>(sequence.memory.data);
  p.norm_weight = norm_weight.as<float>(), p.norm_bias = norm_bias.as<float>();
  p.w1 = w1.as<float>(), p.b1 = b1.as<float>(), p.w2 = w2.as<float>(), p.b2 = b2.as<float>();
  cuda::MlpBlockParams backward = p;
  p.x = x.rows(), p.branch = branch.rows(), p.sum = sum.rows(), p.y = y.rows();
  expect_success(cuda::mlp_block_forward(p, nullptr));

  backward.x = c.branch ? sum.rows() : x.rows();
  backward.d_y = d_y.rows(), backward.d_x = d_x.rows(), backward.d_branch = d_branch.rows();
  backward.d_norm_weight = d_norm_weight.as<float>(), backward.d_norm_bias = d_norm_bias.as<float>();
  backward.d_w1 = d_w1.as<float>(), backward.d_b1 = d_b1.as<float>();
  backward.d_w2 = d_w2.as<float>(), backward.d_b2 = d_b2.as<float>();
  const Memory workspace(cuda::mlp_block_backward_workspace(backward));
  backward.workspace = workspace.data;
  expect_success(cuda::mlp_block_backward(backward, nullptr));
  expect_success(wait());

  NamedTensors all = {{"y", y},
                      {"d_x", d_x},
                      {"d_norm_weight", d_norm_weight},
                      {"d_norm_bias", d_norm_bias},
                      {"d_w1", d_w1},
                      {"d_b1", d_b1},
                      {"d_w2", d_w2},
                      {"d_b2", d_b2}};
  if (c.has_d_branch()) all.push_back({"d_branch", d_branch});
  expect_untouched_gaps(all);
  return all;
}

void check(const MlpBlockCase& c) {
  const MlpBlockData data(c);
  const Named want = reference(c, data);
  const NamedTensors got = run(c, data);
  for (size_t i = 0; i < got.size(); ++i)
    expect_close(got[i].first, got[i].second.values(), want[i].second, c.tolerance());
}

void check_refusal(const MlpBlockCase& c) {
  cuda::MlpBlockParams p;
  p.dtype = c.type, p.max_shared_bytes = c.max_shared_bytes, p.num_rows = c.rows;
  p.in = p.out = c.width, p.hidden = c.hidden;
  expect(cuda::mlp_block_backward(p, nullptr) == cudaErrorInvalidValue, c.name() + " is not refused");
}

void add_cases(Cases& cases) {
  constexpr int kBytes99 = 99 << 10, kBytes163 = 163 << 10, kBytes227 = 227 << 10;  // what a block has on some GPUs
  for (const DType type : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
    const bool wide = type == DType::kFloat32;
    auto draw = [&](int64_t rows, int width, int hidden) {
      MlpBlockCase c;
      c.type = type, c.rows = rows, c.width = width, c.hidden = hidden;
      c.activation = cases.one_of(MlpActivation::kGelu, MlpActivation::kSilu);
      c.branch = cases.one_of(0, 1, 1, 1), c.dropout = cases.one_of(0, 1), c.path = cases.one_of(0, 1);
      c.sequences = cases.one_of(0, 1), c.strided = cases.one_of(0, 1);
      return c;
    };
    auto add = [&](const MlpBlockCase& c) { cases.add(c.name(), [c] { check(c); }); };
    for (const int64_t rows : {0, 1, 15, 16, 17, 65, 200}) add(draw(rows, 32, 48));
    // one or two groups of hidden columns, of whole and of partial tiles
    for (const int width : {32, 48, 64})
      for (const int hidden : {16, 37, 128, wide ? 200 : 300}) add(draw(70, width, hidden));
    for (const bool branch : {false, true}) {
      MlpBlockCase c = draw(150, 64, wide ? 128 : 256);
      c.branch = branch, c.dropout = c.path = c.sequences = true;
      add(c);
    }
    MlpBlockCase far = draw(40, 48, 64);
    far.far = true;
    add(far);
    for (const MlpActivation activation : {MlpActivation::kNone, wide ? MlpActivation::kRelu : MlpActivation::kNone}) {
      MlpBlockCase c = draw(40, 64, 64);
      c.activation = activation;
      add(c);
    }
    // the widest hidden layers for the shared memory
    struct Most {
      int bytes, hidden;
    };
    for (const Most most : wide ? std::vector<Most>{{kBytes227, 256}, {kBytes163, 128}}
                                : std::vector<Most>{{kBytes227, 512}, {kBytes163, 512}, {kBytes99, 256}}) {
      MlpBlockCase c = draw(70, 64, most.hidden);
      c.max_shared_bytes = most.bytes;
      add(c);
      c.hidden += 1;
      cases.add(c.name() + "/refused", [c] { check_refusal(c); });
    }
    for (const int hidden : {wide ? 128 : 256, wide ? 160 : 320}) {
      MlpBlockCase c = draw(150, 64, hidden);
      c.branch = c.dropout = c.path = true;
      cases.add(c.name() + "/schedules", [c] { expect_one_result([c] { return run(c, MlpBlockData(c)); }); });
    }
  }
}

const Registration registration(23, add_cases);

}  // namespace
}  // namespace recgrela::tests
