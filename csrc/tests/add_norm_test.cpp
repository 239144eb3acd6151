// add_norm against a computation in float64.
#include <cmath>

#include "kernels/add_norm/params.h"
#include "tests/case.h"
#include "tests/dropout_reference.h"

namespace recgrela::tests {
namespace {

constexpr double kEps = 1e-5;

struct AddNormCase {
  DType type = DType::kFloat32;
  int64_t rows = 0;
  int width = 64;
  bool post_norm = false, branch = true, dropout = false, path = false, sequences = false, strided = false;
  bool d_residual = true, d_normed = true;

  std::string name() const {
    return std::string("add_norm/") + name_of(type) + "/T=" + std::to_string(rows) + "/D=" + std::to_string(width) +
           (post_norm ? "/post" : "/pre") + (branch ? "" : "/no z") + (dropout ? "/drop" : "") + (path ? "/path" : "") +
           (sequences ? "/sequences" : "") + (strided ? "/strided" : "") + (d_residual ? "" : "/no d_residual") +
           (d_normed ? "" : "/no d_normed");
  }
  int64_t stride(int64_t more) const { return strided ? width + 8 * more : width; }
  bool has_residual() const { return post_norm ? type != DType::kFloat32 : branch; }
  bool has_d_z() const { return branch && (dropout || path || type != DType::kFloat32); }
};

struct AddNormData {
  Doubles x, z, weight, bias, d_residual, d_normed;
  Lengths sequence, seed = {-3141592653589793, 2718281828459045};

  explicit AddNormData(const AddNormCase& c) {
    const int64_t n = c.rows * c.width;
    x = random_numbers(DType::kFloat32, n, 1, 1), z = random_numbers(c.type, n, 1, 2);
    for (double& value : x) value += 0.5;
    weight = random_numbers(DType::kFloat32, c.width, 0.5, 3), bias = random_numbers(DType::kFloat32, c.width, 0.5, 4);
    d_residual = random_numbers(DType::kFloat32, n, 1, 5), d_normed = random_numbers(c.type, n, 1, 6);
    for (int64_t row = 0; row < c.rows; ++row) sequence.push_back(row / 3);
  }
};

Named reference(const AddNormCase& c, const AddNormData& data) {
  const int64_t n = c.rows * c.width;
  Doubles residual(n), normed(n), d_x(n), d_z(n), d_weight(c.width), d_bias(c.width);
  const DropoutReference dropout(c.dropout ? 0.3 : 0, data.seed[0]), path(c.path ? 0.4 : 0, data.seed[1]);
  for (int64_t row = 0; row < c.rows; ++row) {
    Doubles s(c.width), factors(c.width), d(c.width);
    double mean = 0, variance = 0, sum = 0, product = 0;
    for (int i = 0; i < c.width; ++i) {
      const int64_t at = row * c.width + i;
      factors[i] = dropout.factor(at) * path.factor(c.sequences ? data.sequence[row] : row);
      s[i] = data.x[at] + (c.branch ? factors[i] * data.z[at] : 0);
      mean += s[i] / c.width;
    }
    for (const double value : s) variance += (value - mean) * (value - mean) / c.width;
    const double factor = 1 / std::sqrt(variance + kEps);
    for (int i = 0; i < c.width; ++i) {
      const int64_t at = row * c.width + i;
      const double x = (s[i] - mean) * factor, y = x * data.weight[i] + data.bias[i];
      residual[at] = c.post_norm ? y : s[i], normed[at] = y;
      const double d_y = (c.d_normed ? data.d_normed[at] : 0) + (c.post_norm && c.d_residual ? data.d_residual[at] : 0);
      d_weight[i] += d_y * x, d_bias[i] += d_y;
      d[i] = d_y * data.weight[i];
      sum += d[i] / c.width, product += d[i] * x / c.width;
    }
    for (int i = 0; i < c.width; ++i) {
      const int64_t at = row * c.width + i;
      d_x[at] = factor * (d[i] - sum - (s[i] - mean) * factor * product);
      if (!c.post_norm && c.d_residual) d_x[at] += data.d_residual[at];
      d_z[at] = d_x[at] * factors[i];
    }
  }
  Named all = {{"normed", normed}, {"d_x", d_x}, {"d_weight", d_weight}, {"d_bias", d_bias}};
  if (c.has_residual()) all.push_back({"residual", residual});
  if (c.has_d_z()) all.push_back({"d_z", d_z});
  return all;
}

NamedTensors run(const AddNormCase& c, const AddNormData& data) {
  auto matrix = [&](DType type, int64_t more) { return Tensor(type, c.rows, c.width, c.stride(more)); };
  auto filled = [](Tensor tensor, const Doubles& values) {
    tensor.set(values);
    return tensor;
  };
  auto vector = [&] { return Tensor(DType::kFloat32, 1, c.width); };
  const DType wide = DType::kFloat32;
  const Tensor x = filled(matrix(wide, 1), data.x), z = filled(matrix(c.type, 2), data.z);
  const Tensor weight = filled(vector(), data.weight), bias = filled(vector(), data.bias);
  const Tensor d_residual = filled(matrix(wide, 3), data.d_residual),
               d_normed = filled(matrix(c.type, 4), data.d_normed);
  const Tensor normed = matrix(c.type, 5), residual = c.has_residual() ? matrix(wide, 6) : Tensor();
  const Tensor d_x = matrix(wide, 7), d_z = c.has_d_z() ? matrix(c.type, 8) : Tensor();
  const Tensor d_weight = vector(), d_bias = vector();
  const Integers seed(data.seed, true), sequence(data.sequence, true);

  cuda::AddNormParams p;
  p.dtype = c.type, p.num_rows = c.rows, p.width = c.width, p.post_norm = c.post_norm, p.eps = kEps;
  p.x = x.rows(), p.weight = weight.as<float>(), p.bias = bias.as<float>();
  if (c.branch) p.z = z.rows();
  if (c.sequences) p.sequence = reinterpret_cast<const int64_t*>(sequence.memory.data);
  const auto* const seeds = reinterpret_cast<const int64_t*>(seed.memory.data);
  if (c.dropout) p.dropout = DropoutReference(0.3, data.seed[0]).params(seeds);
  if (c.path) p.drop_path = DropoutReference(0.4, data.seed[1]).params(seeds + 1);
  auto backward = p;
  p.normed = normed.rows(), p.residual = residual.rows();
  expect_success(cuda::add_norm_forward(p, nullptr));

  if (!c.post_norm) backward.z = {}, backward.x = c.branch ? residual.rows() : x.rows();
  if (c.d_residual) backward.d_residual = d_residual.rows();
  if (c.d_normed) backward.d_normed = d_normed.rows();
  backward.d_x = d_x.rows(), backward.d_z = d_z.rows();
  backward.d_weight = d_weight.as<float>(), backward.d_bias = d_bias.as<float>();
  const Memory workspace(cuda::add_norm_backward_workspace(backward));
  backward.workspace = workspace.data;
  expect_success(cuda::add_norm_backward(backward, nullptr));

  NamedTensors all = {{"normed", normed}, {"d_x", d_x}, {"d_weight", d_weight}, {"d_bias", d_bias}};
  if (c.has_residual()) all.push_back({"residual", residual});
  if (c.has_d_z()) all.push_back({"d_z", d_z});
  expect_untouched_gaps(all);
  return all;
}

void check(const AddNormCase& c) {
  const AddNormData data(c);
  const NamedTensors results = run(c, data);
  const Named want = reference(c, data);
  for (size_t i = 0; i < results.size(); ++i) {
    const auto& [name, tensor] = results[i];
    const bool half = c.type != DType::kFloat32 && (name == "normed" || name == "d_z");
    const double tolerance = !half ? 2e-6 : c.type == DType::kFloat16 ? 1e-3 : 8e-3;
    expect_close(name, tensor.values(), want[i].second, tolerance, 0.1);
  }
}

void add_cases(Cases& cases) {
  const DType types[] = {DType::kFloat32, DType::kFloat16, DType::kBFloat16};
  auto draw = [&](DType type, int64_t rows, int width) {
    AddNormCase c;
    c.type = type, c.rows = rows, c.width = width;
    c.branch = cases.one_of(0, 1, 1, 1), c.dropout = cases.one_of(0, 1), c.path = cases.one_of(0, 1);
    c.sequences = cases.one_of(0, 1), c.strided = cases.one_of(0, 1);
    const int missing = cases.one_of(0, 0, 1, 2);
    c.d_residual = missing != 1, c.d_normed = missing != 2;
    return c;
  };
  for (DType type : types)
    for (bool post_norm : {false, true}) {
      // widths of every number of lanes, full or not; rows that do not fill a warp, a block or the grid
      for (int width : {32, 48, 64, 80, 128, 176, 256})
        for (int64_t rows : {1, 7, 70}) {
          AddNormCase c = draw(type, rows, width);
          c.post_norm = post_norm;
          cases.add(c.name(), [c] { check(c); });
        }
      for (int64_t rows : {0, 1031}) {
        AddNormCase c = draw(type, rows, cases.one_of(32, 64));
        c.post_norm = post_norm;
        cases.add(c.name(), [c] { check(c); });
      }
      AddNormCase c = draw(type, 333, 64);
      c.post_norm = post_norm, c.branch = c.dropout = c.path = true;
      cases.add(c.name() + "/schedules", [c] { expect_one_result([c] { return run(c, AddNormData(c)); }); });
    }
}

const Registration registration(11, add_cases);

}  // namespace
}  // namespace recgrela::tests
