// rela_projections against its definition in float64.
#include <algorithm>
#include <cmath>

#include "kernels/rela_projections/params.h"
#include "tests/op_checks.h"

namespace recgrela::tests {
namespace {

constexpr double kProjectionsEps = 1e-5;
enum Layer { kIn, kGate, kQk, kLayers };
const char* const kLayerNames[] = {"in", "gate", "qk"};

struct ProjectionsCase {
  DType type = DType::kBFloat16;
  int64_t rows = 0, width = 64, outputs = 128;
  bool gate = true, biases = true, d_residual = true, d_v = true, d_qk = true, strided = false, sparse = false;
  bool constant = false;  // whether the first row has equal elements, which are large
  int max_shared_bytes = 0;

  bool has(int layer) const { return layer != kGate || gate; }
  int64_t outputs_of(int layer) const { return layer == kQk ? outputs : width; }
  std::string name() const {
    return std::string("rela_projections/") + name_of(type) + "/T=" + std::to_string(rows) +
           "/D=" + std::to_string(width) + "/N=" + std::to_string(outputs) + (gate ? "" : "/no gate") +
           (biases ? "" : "/no biases") + (d_residual ? "" : "/no d_residual") + (d_v ? "" : "/no d_v") +
           (d_qk ? "" : "/no d_qk") + (strided ? "/strided" : "") + (sparse ? "/sparse" : "") +
           (constant ? "/constant row" : "") + (max_shared_bytes ? "/little shared memory" : "");
  }
  // The norm, v and the gradient of v are rounded to the type too.
  double tolerance(const std::string&) const { return type == DType::kFloat16 ? 8e-4 : 6e-3; }
};

struct ProjectionsData {
  Doubles x, norm_weight, norm_bias, weight[kLayers], bias[kLayers], d_residual, d_v, d_gate, d_qk;

  explicit ProjectionsData(const ProjectionsCase& c) {
    const int64_t n = c.rows * c.width;
    x = random_numbers(DType::kFloat32, n, 2, 1);
    for (double& value : x) value += 0.5;
    if (c.constant) std::fill(x.begin(), x.begin() + c.width, 1000);
    norm_weight = random_numbers(DType::kFloat32, c.width, 1, 2);
    norm_bias = random_numbers(DType::kFloat32, c.width, 0.5, 3);
    for (int i = 0; i < kLayers; ++i) {
      weight[i] = random_numbers(c.type, c.outputs_of(i) * c.width, 0.15, 4 + i);
      bias[i] = random_numbers(DType::kFloat32, c.outputs_of(i), c.biases ? 1 : 0, 7 + i);
    }
    d_residual = random_numbers(DType::kFloat32, n, c.d_residual ? 1 : 0, 10);
    d_v = random_numbers(c.type, n, c.d_v ? 1 : 0, 11), d_gate = random_numbers(c.type, n, c.gate ? 1 : 0, 12);
    d_qk = random_numbers(c.type, c.rows * c.outputs, c.d_qk ? 1 : 0, 13);
  }
};

// y = x weight^T + bias for one row, and its gradients: adds to d_x, d_weight and d_bias.
struct LayerReference {
  const Doubles &weight, &bias;
  Doubles d_weight, d_bias;

  LayerReference(const Doubles& weight, const Doubles& bias)
      : weight(weight), bias(bias), d_weight(weight.size()), d_bias(bias.size()) {}
  Doubles operator()(const Doubles& x) const {
    Doubles y = bias;
    for (size_t o = 0; o < y.size(); ++o)
      for (size_t i = 0; i < x.size(); ++i) y[o] += weight[o * x.size() + i] * x[i];
    return y;
  }
  void backward(const Doubles& x, const double* d_y, Doubles& d_x) {
    for (size_t o = 0; o < d_bias.size(); ++o) {
      d_bias[o] += d_y[o];
      for (size_t i = 0; i < x.size(); ++i) {
        d_weight[o * x.size() + i] += d_y[o] * x[i];
        d_x[i] += d_y[o] * weight[o * x.size() + i];
      }
    }
  }
};

struct ProjectionsRun : RunDefaults {
  using Case = ProjectionsCase;
  using Data = ProjectionsData;
  using State = Tensor;
  const ProjectionsCase c;
  Tensor x, norm_weight, norm_bias, weight[kLayers], bias[kLayers], y[kLayers];
  Tensor d_residual, d_y[kLayers], d_x, d_norm_weight, d_norm_bias, d_weight[kLayers], d_bias[kLayers];

  ProjectionsRun(const ProjectionsCase& c, const ProjectionsData& data) : c(c) {
    const DType wide = DType::kFloat32;
    auto filled = [](Tensor tensor, const Doubles& values) {
      tensor.set(values);
      return tensor;
    };
    auto vector = [&](int64_t size) { return Tensor(wide, 1, size); };
    x = filled(matrix(wide, c.width, 1), data.x), d_x = matrix(wide, c.width, 2);
    norm_weight = filled(vector(c.width), data.norm_weight), norm_bias = filled(vector(c.width), data.norm_bias);
    d_norm_weight = vector(c.width), d_norm_bias = vector(c.width);
    if (c.d_residual) d_residual = filled(matrix(wide, c.width, 3), data.d_residual);
    const Doubles* const gradients[] = {&data.d_v, &data.d_gate, &data.d_qk};
    const bool has_gradient[] = {c.d_v, true, c.d_qk};
    for (int i = 0; i < kLayers; ++i) {
      if (!c.has(i)) continue;
      const int64_t n = c.outputs_of(i);
      weight[i] = filled(Tensor(wide, n, c.width), data.weight[i]), d_weight[i] = Tensor(wide, n, c.width);
      if (c.biases) bias[i] = filled(vector(n), data.bias[i]), d_bias[i] = vector(n);
      y[i] = matrix(c.type, n, 4 + i);
      if (has_gradient[i]) d_y[i] = filled(matrix(c.type, n, 7 + i), *gradients[i]);
    }
  }
  Tensor matrix(DType type, int64_t columns, int64_t more) const {
    const int64_t dense = c.strided ? columns + 8 * more : columns;
    return Tensor(type, c.rows, columns, c.sparse ? (int64_t{1} << 26) - 64 : dense, c.sparse);
  }
  Ends<Tensor> ends(const ProjectionsData&) const { return {}; }

  cuda::RelaProjectionsParams params() const {
    cuda::RelaProjectionsParams p;
    p.dtype = c.type, p.num_rows = c.rows, p.width = c.width, p.outputs = c.outputs, p.eps = kProjectionsEps;
    p.max_shared_bytes = c.max_shared_bytes, p.x = x.rows();
    p.norm_weight = norm_weight.as<float>(), p.norm_bias = norm_bias.as<float>();
    p.in_weight = weight[kIn].as<float>(), p.gate_weight = weight[kGate].as<float>();
    p.v = y[kIn].rows();
    return p;
  }
  void forward(const Ends<Tensor>&) const {
    auto p = params();
    p.in_bias = bias[kIn].as<float>(), p.gate_bias = bias[kGate].as<float>(), p.qk_bias = bias[kQk].as<float>();
    p.qk_weight = weight[kQk].as<float>(), p.gate = y[kGate].rows(), p.qk = y[kQk].rows();
    expect_success(cuda::rela_projections_forward(p, nullptr));
    for (int i = 0; i < kLayers; ++i) expect_untouched_gaps({{kLayerNames[i], y[i]}});
  }
  void backward(const Ends<Tensor>&) const {
    auto p = params();
    p.d_residual = d_residual.rows(), p.d_x = d_x.rows(), p.d_v = d_y[kIn].rows(), p.d_gate = d_y[kGate].rows();
    if (c.d_qk) {
      p.d_qk = d_y[kQk].rows(), p.qk_weight = weight[kQk].as<float>();
      p.d_qk_weight = d_weight[kQk].as<float>(), p.d_qk_bias = d_bias[kQk].as<float>();
    } else {
      p.outputs = 0;
    }
    p.d_norm_weight = d_norm_weight.as<float>(), p.d_norm_bias = d_norm_bias.as<float>();
    p.d_in_weight = d_weight[kIn].as<float>(), p.d_in_bias = d_bias[kIn].as<float>();
    p.d_gate_weight = d_weight[kGate].as<float>(), p.d_gate_bias = d_bias[kGate].as<float>();
    const Memory workspace(cuda::rela_projections_backward_workspace(p));
    p.workspace = workspace.data;
    expect_success(cuda::rela_projections_backward(p, nullptr));
    expect_untouched_gaps({{"d_x", d_x}});
  }
  NamedTensors results(const Ends<Tensor>&) const {
    NamedTensors out = {{"d_x", d_x}, {"d_norm_weight", d_norm_weight}, {"d_norm_bias", d_norm_bias}};
    for (int i = 0; i < kLayers; ++i) {
      if (!c.has(i)) continue;
      const std::string name = kLayerNames[i];
      out.push_back({name, y[i]});
      if (i == kQk && !c.d_qk) continue;
      out.push_back({"d_" + name + "_weight", d_weight[i]});
      if (c.biases) out.push_back({"d_" + name + "_bias", d_bias[i]});
    }
    return out;
  }

  static Named reference(const ProjectionsCase& c, const ProjectionsData& data) {
    const int64_t width = c.width;
    Doubles y[kLayers], d_x, d_norm_weight(width), d_norm_bias(width);
    LayerReference in(data.weight[kIn], data.bias[kIn]), gate(data.weight[kGate], data.bias[kGate]),
        qk(data.weight[kQk], data.bias[kQk]);
    auto append = [](Doubles& to, const Doubles& row) { to.insert(to.end(), row.begin(), row.end()); };
    for (int64_t row = 0; row < c.rows; ++row) {
      const double* const x = &data.x[row * width];
      double mean = 0, variance = 0;
      for (int64_t i = 0; i < width; ++i) mean += x[i] / width;
      for (int64_t i = 0; i < width; ++i) variance += (x[i] - mean) * (x[i] - mean) / width;
      const double factor = 1 / std::sqrt(variance + kProjectionsEps);
      Doubles n(width), u(width), d_u(width), d_v(&data.d_v[row * width], &data.d_v[row * width] + width);
      for (int64_t i = 0; i < width; ++i)
        n[i] = (x[i] - mean) * factor, u[i] = n[i] * data.norm_weight[i] + data.norm_bias[i];
      const Doubles v = in(u);
      append(y[kIn], v), append(y[kQk], qk(v)), append(y[kGate], gate(u));
      qk.backward(v, &data.d_qk[row * c.outputs], d_v);
      in.backward(u, d_v.data(), d_u);
      gate.backward(u, &data.d_gate[row * width], d_u);
      double sum = 0, product = 0;
      for (int64_t i = 0; i < width; ++i) {
        d_norm_weight[i] += d_u[i] * n[i], d_norm_bias[i] += d_u[i];
        d_u[i] *= data.norm_weight[i];
        sum += d_u[i] / width, product += d_u[i] * n[i] / width;
      }
      for (int64_t i = 0; i < width; ++i)
        d_x.push_back(data.d_residual[row * width + i] + factor * (d_u[i] - sum - n[i] * product));
    }
    const LayerReference* const layers[] = {&in, &gate, &qk};
    Named out = {{"d_x", d_x}, {"d_norm_weight", d_norm_weight}, {"d_norm_bias", d_norm_bias}};
    for (int i = 0; i < kLayers; ++i) {
      if (!c.has(i)) continue;
      const std::string name = kLayerNames[i];
      out.push_back({name, y[i]});
      if (i == kQk && !c.d_qk) continue;
      out.push_back({"d_" + name + "_weight", layers[i]->d_weight});
      if (c.biases) out.push_back({"d_" + name + "_bias", layers[i]->d_bias});
    }
    return out;
  }
};

void add_cases(Cases& cases) {
  for (DType type : {DType::kFloat16, DType::kBFloat16}) {
    for (int64_t width : {32, 48, 64})
      for (int64_t rows : {0, 1, 17, 65, 700}) {
        ProjectionsCase c;
        c.type = type, c.rows = rows, c.width = width;
        c.outputs = width == 48 ? cases.one_of(80, 96) : width * cases.one_of(1, 2);
        c.gate = cases.one_of(1, 1, 0), c.biases = cases.one_of(1, 1, 0), c.strided = cases.one_of(0, 1);
        c.d_residual = cases.one_of(1, 1, 0), c.d_v = cases.one_of(1, 1, 0), c.d_qk = cases.one_of(1, 1, 1, 0);
        cases.add(c.name(), [c] { check<ProjectionsRun>(c); });
      }
    ProjectionsCase c;
    c.type = type, c.rows = 130;
    cases.add(c.name(), [c] { check<ProjectionsRun>(c); });
    ProjectionsCase last = c;  // the wanted rows, and all rows, of a model's last block
    last.outputs = 64, last.d_v = false;
    cases.add(last.name(), [last] { check<ProjectionsRun>(last); });
    last.d_v = true, last.gate = false;
    cases.add(last.name(), [last] { check<ProjectionsRun>(last); });
    ProjectionsCase only_gate = c;
    only_gate.rows = 70, only_gate.d_v = only_gate.d_qk = false;
    cases.add(only_gate.name(), [only_gate] { check<ProjectionsRun>(only_gate); });
    ProjectionsCase constant = c;
    constant.width = 48, constant.outputs = 96, constant.constant = true;
    cases.add(constant.name(), [constant] { check<ProjectionsRun>(constant); });
    ProjectionsCase sparse = c;
    sparse.rows = 65, sparse.sparse = true;
    cases.add(sparse.name(), [sparse] { check<ProjectionsRun>(sparse); });
    c.max_shared_bytes = 99 * 1024;  // as much as on many GPUs
    cases.add(c.name(), [c] { check<ProjectionsRun>(c); });
    c.max_shared_bytes = 0, c.rows = 700;
    cases.add(c.name() + "/schedules", [c] { check_one_result<ProjectionsRun>(c); });
  }
  cases.add("rela_projections/refusals", [] {
    auto refuses = [](DType type, int width, int outputs) {
      cuda::RelaProjectionsParams p;
      p.dtype = type, p.width = width, p.outputs = outputs;
      expect(cuda::rela_projections_forward(p, nullptr) == cudaErrorInvalidValue, "the forward takes another size");
      expect(cuda::rela_projections_backward(p, nullptr) == cudaErrorInvalidValue, "the backward takes another size");
    };
    refuses(DType::kFloat32, 64, 64), refuses(DType::kFloat16, 16, 16), refuses(DType::kFloat16, 40, 16);
    refuses(DType::kFloat16, 80, 16), refuses(DType::kFloat16, 64, 24), refuses(DType::kFloat16, 64, 144);
    cuda::RelaProjectionsParams p;
    p.width = 64, p.outputs = 128, p.max_shared_bytes = 48 * 1024;
    expect(cuda::rela_projections_backward(p, nullptr) == cudaErrorInvalidValue, "the backward takes too much memory");
    p.outputs = 0;
    expect(cuda::rela_projections_forward(p, nullptr) == cudaErrorInvalidValue, "the forward takes no outputs");
  });
}

const Registration registration(13, add_cases);

}  // namespace
}  // namespace recgrela::tests
