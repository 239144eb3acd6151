// linear against its definition in float64.
#include "kernels/linear/params.h"
#include "tests/op_checks.h"

namespace recgrela::tests {
namespace {

struct LinearCase {
  DType type = DType::kFloat32;
  int64_t rows = 0, width = 64;
  int64_t outputs[2] = {64, 0};
  bool bias[2] = {true, true}, strided = false, sparse = false, d_x = true, d_passed = false;
  int max_shared_bytes = 0;

  int num_layers() const { return outputs[1] ? 2 : 1; }
  std::string name() const {
    std::string text = std::string("linear/") + name_of(type) + "/T=" + std::to_string(rows) +
                       "/I=" + std::to_string(width) + "/O=" + std::to_string(outputs[0]);
    if (outputs[1]) text += "+" + std::to_string(outputs[1]);
    for (int i = 0; i < num_layers(); ++i) text += bias[i] ? "" : "/no bias " + std::to_string(i + 1);
    return text + (strided ? "/strided" : "") + (sparse ? "/sparse" : "") + (d_x ? "" : "/no d_x") +
           (d_passed ? "/passed" : "") + (max_shared_bytes ? "/little shared memory" : "");
  }
  double tolerance(const std::string& name) const {
    if (type == DType::kFloat32) return 1e-6;
    if (name.rfind("d_weight", 0) == 0 || name.rfind("d_bias", 0) == 0) return 1e-5;  // float32 sums of exact products
    return type == DType::kFloat16 ? 1e-3 : 8e-3;
  }
};

// The parameters are rounded to the type of the rows as the kernels do, so that only sums and results differ.
struct LinearData {
  Doubles x, weight[2], bias[2], d_y[2], d_passed;

  explicit LinearData(const LinearCase& c) {
    x = random_numbers(c.type, c.rows * c.width, 1, 1);
    d_passed = random_numbers(c.type, c.rows * c.width, 4, 8);
    for (int i = 0; i < c.num_layers(); ++i) {
      weight[i] = random_numbers(c.type, c.outputs[i] * c.width, 0.2, 2 + i);
      bias[i] = random_numbers(DType::kFloat32, c.outputs[i], 1, 4 + i);
      d_y[i] = random_numbers(c.type, c.rows * c.outputs[i], 1, 6 + i);
    }
  }
};

struct LinearRun : RunDefaults {
  using Case = LinearCase;
  using Data = LinearData;
  using State = Tensor;
  const LinearCase c;
  Tensor x, d_x, d_passed, y[2], d_y[2], weight[2], bias[2], d_weight[2], d_bias[2];

  LinearRun(const LinearCase& c, const LinearData& data) : c(c) {
    x = matrix(c.width), x.set(data.x);
    if (c.d_x) d_x = matrix(c.width);
    if (c.d_passed) d_passed = matrix(c.width), d_passed.set(data.d_passed);
    for (int i = 0; i < c.num_layers(); ++i) {
      y[i] = matrix(c.outputs[i]), d_y[i] = matrix(c.outputs[i]), d_y[i].set(data.d_y[i]);
      weight[i] = Tensor(DType::kFloat32, c.outputs[i], c.width);
      weight[i].set(data.weight[i]);
      d_weight[i] = Tensor(DType::kFloat32, c.outputs[i], c.width);
      if (!c.bias[i]) continue;
      bias[i] = Tensor(DType::kFloat32, 1, c.outputs[i]), bias[i].set(data.bias[i]);
      d_bias[i] = Tensor(DType::kFloat32, 1, c.outputs[i]);
    }
  }
  Tensor matrix(int64_t columns) const {
    const int64_t dense = c.strided ? columns + 16 / size_of(c.type) * 3 : columns;
    return Tensor(c.type, c.rows, columns, c.sparse ? (int64_t{1} << 26) - 64 : dense, c.sparse);
  }
  Ends<Tensor> ends(const LinearData&) const { return {}; }

  cuda::LinearParams params() const {
    cuda::LinearParams p;
    p.dtype = c.type, p.num_rows = c.rows, p.width = c.width, p.x = x.rows();
    p.max_shared_bytes = c.max_shared_bytes;
    for (int i = 0; i < c.num_layers(); ++i)
      p.layers[i].outputs = c.outputs[i], p.layers[i].weight = weight[i].as<float>(),
      p.layers[i].bias = bias[i].as<float>();
    return p;
  }
  void forward(const Ends<Tensor>&) const {
    auto p = params();
    for (int i = 0; i < 2; ++i) p.layers[i].y = y[i].rows();
    expect_success(cuda::linear_forward(p, nullptr));
    for (int i = 0; i < c.num_layers(); ++i) expect_untouched_gaps({{"y", y[i]}});
  }
  void backward(const Ends<Tensor>&) const {
    auto p = params();
    for (int i = 0; i < 2; ++i) {
      p.layers[i].d_y = d_y[i].rows();
      p.layers[i].d_weight = d_weight[i].as<float>(), p.layers[i].d_bias = d_bias[i].as<float>();
    }
    p.d_x = d_x.rows(), p.d_passed = d_passed.rows();
    const Memory workspace(cuda::linear_backward_workspace(p));
    p.workspace = workspace.data;
    expect_success(cuda::linear_backward(p, nullptr));
    if (c.d_x) expect_untouched_gaps({{"d_x", d_x}});
  }
  NamedTensors results(const Ends<Tensor>&) const {
    NamedTensors out;
    for (int i = 0; i < c.num_layers(); ++i) {
      const std::string number = std::to_string(i + 1);
      out.push_back({"y" + number, y[i]}), out.push_back({"d_weight" + number, d_weight[i]});
      if (c.bias[i]) out.push_back({"d_bias" + number, d_bias[i]});
    }
    if (c.d_x) out.push_back({"d_x", d_x});
    return out;
  }

  static Named reference(const LinearCase& c, const LinearData& data) {
    Named out;
    Doubles d_x = c.d_passed ? data.d_passed : Doubles(c.rows * c.width);
    for (int l = 0; l < c.num_layers(); ++l) {
      const int64_t outputs = c.outputs[l];
      Doubles y(c.rows * outputs), d_weight(outputs * c.width), d_bias(outputs);
      for (int64_t row = 0; row < c.rows; ++row)
        for (int64_t o = 0; o < outputs; ++o) {
          const double d = data.d_y[l][row * outputs + o];
          double sum = c.bias[l] ? data.bias[l][o] : 0;
          for (int64_t i = 0; i < c.width; ++i) {
            sum += data.x[row * c.width + i] * data.weight[l][o * c.width + i];
            d_weight[o * c.width + i] += d * data.x[row * c.width + i];
            d_x[row * c.width + i] += d * data.weight[l][o * c.width + i];
          }
          y[row * outputs + o] = sum, d_bias[o] += d;
        }
      const std::string number = std::to_string(l + 1);
      out.push_back({"y" + number, y}), out.push_back({"d_weight" + number, d_weight});
      if (c.bias[l]) out.push_back({"d_bias" + number, d_bias});
    }
    if (c.d_x) out.push_back({"d_x", d_x});
    return out;
  }
};

void add_cases(Cases& cases) {
  struct Shape {
    int64_t rows, width, outputs[2];
  };
  // Each kernel of the forward and of the backward, partial tiles in every dimension, several tiles of rows a block.
  const Shape shapes[] = {{0, 64, {64, 0}},    {1, 16, {16, 0}},    {17, 32, {32, 0}},    {700, 64, {64, 0}},
                          {65, 48, {48, 16}},  {130, 64, {192, 0}}, {129, 64, {80, 112}}, {200, 128, {256, 0}},
                          {90, 128, {384, 0}}, {63, 80, {128, 64}}, {66, 16, {512, 0}},   {40, 256, {16, 240}},
                          {33, 512, {32, 0}},  {700, 32, {128, 0}}, {1100, 64, {64, 64}}};
  for (DType type : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
    for (const Shape& shape : shapes) {
      LinearCase c;
      c.type = type, c.rows = shape.rows, c.width = shape.width;
      c.outputs[0] = shape.outputs[0], c.outputs[1] = shape.outputs[1];
      c.bias[0] = cases.one_of(1, 1, 0), c.bias[1] = cases.one_of(1, 1, 0);
      c.strided = cases.one_of(0, 1), c.d_x = cases.one_of(1, 1, 1, 0);
      cases.add(c.name(), [c] { check<LinearRun>(c); });
      c.d_x = c.d_passed = true;
      cases.add(c.name(), [c] { check<LinearRun>(c); });
    }
    LinearCase c;
    c.type = type, c.rows = 700, c.outputs[0] = 80, c.outputs[1] = 112;
    cases.add(c.name() + "/schedules", [c] { check_one_result<LinearRun>(c); });
    LinearCase sparse = c;
    sparse.rows = 65, sparse.sparse = true;
    cases.add(sparse.name(), [sparse] { check<LinearRun>(sparse); });
    LinearCase few = c;  // few outputs, for which float32 rows have another backward
    few.outputs[0] = 48, few.outputs[1] = 64;
    cases.add(few.name() + "/schedules", [few] { check_one_result<LinearRun>(few); });
    few.rows = 65, few.sparse = true;
    cases.add(few.name(), [few] { check<LinearRun>(few); });
    c.max_shared_bytes = 99 * 1024;  // as much as on many GPUs
    cases.add(c.name(), [c] { check<LinearRun>(c); });
  }
  cases.add("linear/refusals", [] {
    auto refuses = [](int64_t width, int64_t first, int64_t second) {
      cuda::LinearParams p;
      p.width = width, p.layers[0].outputs = first, p.layers[1].outputs = second;
      expect(cuda::linear_forward(p, nullptr) == cudaErrorInvalidValue, "the forward takes a width of another size");
      expect(cuda::linear_backward(p, nullptr) == cudaErrorInvalidValue, "the backward takes a width of another size");
    };
    refuses(8, 16, 0), refuses(16, 24, 0), refuses(0, 16, 0), refuses(16, 0, 16), refuses(16, 16, 8);
    refuses(528, 16, 0), refuses(16, 272, 256);
  });
}

const Registration registration(11, add_cases);

}  // namespace
}  // namespace recgrela::tests
