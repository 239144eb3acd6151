// linear_cross_entropy against its definition in float64.
#include <algorithm>
#include <cmath>

#include "kernels/linear_cross_entropy/params.h"
#include "tests/case.h"

namespace recgrela::tests {
namespace {

enum class Bias { kNone, kRandom, kMasks };

struct EntropyCase {
  DType type = DType::kFloat32;
  int64_t rows = 70, items = 100, dim = 64;
  Bias bias = Bias::kNone;
  double smoothing = 0, scale = 1;  // of the scores
  bool strided = false;
  bool wide = false;  // rows are float32, rounded to the type
  bool d_hidden = true, d_weight = true;

  std::string name() const {
    return std::string("linear_cross_entropy/") + name_of(type) + "/T=" + std::to_string(rows) +
           "/N=" + std::to_string(items) + "/D=" + std::to_string(dim) +
           (bias == Bias::kRandom  ? "/bias"
            : bias == Bias::kMasks ? "/masks"
                                   : "") +
           (smoothing > 0 ? "/smoothing" : "") +
           (scale == 1 ? "" : "/scale=" + std::to_string(static_cast<int>(scale))) + (strided ? "/strided" : "") +
           (wide ? "/float32 rows" : "") + (d_hidden ? "" : "/no d_hidden") + (d_weight ? "" : "/no d_weight");
  }
  int64_t stride(int64_t more) const { return strided ? dim + 16 * more : dim; }
  DType rows_type() const { return wide ? DType::kFloat32 : type; }
  DType hidden_gradient() const { return type == DType::kFloat16 ? DType::kFloat32 : rows_type(); }
  double tolerance(const std::string& name) const {
    // Large scores have large rounding errors, which the exponential function makes relative ones.
    if (type == DType::kFloat32 || name == "loss") return scale > 1 ? 2e-4 : 3e-6;
    return type == DType::kFloat16 ? 1e-3 : 8e-3;
  }
};

struct EntropyData {
  Doubles hidden, weight, bias;
  Lengths target;

  explicit EntropyData(const EntropyCase& c) {
    hidden = random_numbers(c.type, c.rows * c.dim, 1, 1);
    weight = random_numbers(c.type, c.items * c.dim, c.scale / std::sqrt(c.dim), 2);
    bias = random_numbers(DType::kFloat32, c.items, 1, 3);
    std::mt19937 random(4);
    for (int64_t i = 0; i < c.rows; ++i) target.push_back(random() % c.items);
    if (c.bias == Bias::kMasks) {  // the first items, which no row wants, are masked
      for (int64_t i = 0; i < c.items - 1; ++i) bias[i] = i < c.items - 5 ? -INFINITY : bias[i];
      for (int64_t& t : target) t = c.items - 1 - t % std::min<int64_t>(5, c.items);
    }
  }
};

struct Results {
  Doubles loss, d_hidden, d_weight, d_bias;
};

Results expected(const EntropyCase& c, const EntropyData& data) {
  Results out{{0}, Doubles(c.rows * c.dim), Doubles(c.items * c.dim), Doubles(c.items)};
  const double t = static_cast<double>(c.rows), n = static_cast<double>(c.items), a = c.smoothing;
  Doubles scores(c.items);
  for (int64_t i = 0; i < c.rows; ++i) {
    double highest = -INFINITY, sum = 0;
    for (int64_t j = 0; j < c.items; ++j) {
      scores[j] = c.bias == Bias::kNone ? 0 : data.bias[j];
      for (int64_t k = 0; k < c.dim; ++k) scores[j] += data.hidden[i * c.dim + k] * data.weight[j * c.dim + k];
      highest = std::max(highest, scores[j]);
    }
    for (int64_t j = 0; j < c.items; ++j) sum += std::exp(scores[j] - highest);
    for (int64_t j = 0; j < c.items; ++j) {
      const double wanted = (j == data.target[i] ? 1 - a : 0) + a / n;
      const double log_p = scores[j] - highest - std::log(sum), d = (std::exp(log_p) - wanted) / t;
      if (wanted > 0) out.loss[0] -= wanted * log_p / t;
      out.d_bias[j] += d;
      for (int64_t k = 0; k < c.dim; ++k) {
        out.d_hidden[i * c.dim + k] += d * data.weight[j * c.dim + k];
        out.d_weight[j * c.dim + k] += d * data.hidden[i * c.dim + k];
      }
    }
  }
  return out;
}

constexpr float kDLoss = -2.5f;

struct EntropyRun {
  const EntropyCase c;
  const Integers target;
  Tensor hidden, weight, bias, loss, d_hidden, d_weight, d_bias, d_loss, scaled_hidden, scaled_weight, scaled_bias;

  EntropyRun(const EntropyCase& c, const EntropyData& data) : c(c), target(data.target, true) {
    hidden = Tensor(c.rows_type(), c.rows, c.dim, c.stride(1)),
    weight = Tensor(DType::kFloat32, c.items, c.dim, c.stride(2));
    hidden.set(data.hidden), weight.set(data.weight);
    loss = Tensor(DType::kFloat32, 1, 1), d_loss = Tensor(DType::kFloat32, 1, 1);
    d_loss.set({kDLoss});
    if (c.d_hidden) {
      d_hidden = Tensor(c.hidden_gradient(), c.rows, c.dim);
      scaled_hidden = Tensor(c.hidden_gradient(), c.rows, c.dim);
    }
    if (c.d_weight) {
      d_weight = Tensor(DType::kFloat32, c.items, c.dim), scaled_weight = Tensor(DType::kFloat32, c.items, c.dim);
    }
    if (c.bias == Bias::kNone) return;
    bias = Tensor(DType::kFloat32, 1, c.items);
    bias.set(data.bias);
    if (c.d_weight) d_bias = Tensor(DType::kFloat32, 1, c.items), scaled_bias = Tensor(DType::kFloat32, 1, c.items);
  }

  void forward() const {
    cuda::LinearCrossEntropyParams p;
    p.dtype = c.type, p.float32_hidden = c.wide, p.num_rows = c.rows, p.num_items = c.items,
    p.dim = static_cast<int>(c.dim);
    p.label_smoothing = static_cast<float>(c.smoothing);
    p.hidden = hidden.rows(), p.weight = weight.rows(), p.bias = bias.as<float>();
    p.target = reinterpret_cast<const int64_t*>(target.memory.data);
    p.loss = loss.as<float>(), p.d_hidden = d_hidden.data();
    p.d_weight = d_weight.as<float>(), p.d_bias = d_bias.as<float>();
    const Memory workspace(cuda::linear_cross_entropy_workspace(p));
    p.workspace = workspace.data;
    expect_success(cuda::linear_cross_entropy_forward(p, nullptr));
    expect_success(wait());
  }

  void backward() const {
    cuda::LinearCrossEntropyScaleParams p;
    p.dtype = c.hidden_gradient(), p.d_loss = d_loss.as<float>();
    if (c.d_hidden) p.gradients[0] = {d_hidden.data(), scaled_hidden.data(), c.rows * c.dim};
    if (c.d_weight) p.gradients[1] = {d_weight.data(), scaled_weight.data(), c.items * c.dim};
    if (d_bias.present()) p.gradients[2] = {d_bias.data(), scaled_bias.data(), c.items};
    expect_success(cuda::linear_cross_entropy_backward(p, nullptr));
    expect_success(wait());
  }

  NamedTensors results() const {
    NamedTensors out = {{"loss", loss}};
    if (c.d_hidden) out.push_back({"d_hidden", d_hidden}), out.push_back({"scaled d_hidden", scaled_hidden});
    if (c.d_weight) out.push_back({"d_weight", d_weight}), out.push_back({"scaled d_weight", scaled_weight});
    if (d_bias.present()) out.push_back({"d_bias", d_bias}), out.push_back({"scaled d_bias", scaled_bias});
    return out;
  }
};

NamedTensors run(const EntropyCase& c, const EntropyData& data) {
  const EntropyRun run(c, data);
  run.forward(), run.backward();
  return run.results();
}

void check(const EntropyCase& c) {
  const EntropyData data(c);
  const Results want = expected(c, data);
  const double t = static_cast<double>(c.rows);
  for (const auto& [name, tensor] : run(c, data)) {
    const bool scaled = name.rfind("scaled ", 0) == 0;
    const std::string gradient = scaled ? name.substr(7) : name;
    Doubles values = gradient == "loss"       ? want.loss
                     : gradient == "d_hidden" ? want.d_hidden
                     : gradient == "d_weight" ? want.d_weight
                                              : want.d_bias;
    if (scaled)
      for (double& x : values) x *= kDLoss;
    // Gradients are sums of terms that may cancel, such as those of a single item.
    const double terms = gradient == "loss"       ? 1
                         : gradient == "d_hidden" ? largest_of(data.weight) / t
                         : gradient == "d_weight" ? largest_of(data.hidden) / t
                                                  : 1 / t;
    expect_close(name, tensor.values(), values, c.tolerance(gradient), terms * (scaled ? -kDLoss : 1));
  }
}

void add_cases(Cases& cases) {
  const DType types[] = {DType::kFloat32, DType::kFloat16, DType::kBFloat16};
  auto add = [&](const EntropyCase& c) { cases.add(c.name(), [c] { check(c); }); };
  auto draw = [&](DType type, int64_t rows, int64_t items, int64_t dim) {
    EntropyCase c;
    c.type = type, c.rows = rows, c.items = items, c.dim = dim;
    c.bias = cases.one_of(Bias::kNone, Bias::kRandom);
    c.smoothing = cases.one_of(0., 0.2), c.strided = cases.one_of(0, 1);
    c.wide = type != DType::kFloat32 && cases.one_of(0, 1);
    return c;
  };
  for (DType type : types) {
    for (int64_t items : {1, 7, 64, 100, 417}) add(draw(type, cases.one_of(1, 37, 130), items, 64));
    for (int64_t rows : {1, 15, 64, 257}) add(draw(type, rows, cases.one_of(2, 65, 130), cases.one_of(32, 64)));
    for (int64_t dim : {32, 48, 96, 128, 208, 256}) add(draw(type, 70, 90, dim));
    for (bool d_hidden : {true, false})
      for (bool d_weight : {true, false}) {
        EntropyCase c = draw(type, 33, 80, 32);
        c.d_hidden = d_hidden, c.d_weight = d_weight;
        if (!d_hidden || !d_weight) add(c);
      }
    EntropyCase c = draw(type, 150, 300, 64);
    c.scale = 300;
    add(c);
    c.scale = 1, c.bias = Bias::kMasks, c.smoothing = 0;
    add(c);
    c.bias = Bias::kRandom, c.smoothing = 0.1, c.rows = 200, c.items = 333;
    cases.add(c.name() + "/schedules", [c] { expect_one_result([&] { return run(c, EntropyData(c)); }); });
  }
  // More rows than normalizers in shared memory, and items enough for 4 multiprocessors without a split of the rows.
  EntropyCase c = draw(DType::kBFloat16, 580, 512, 128);
  cases.add(c.name() + "/refill", [c] { check(c); });
  for (DType type : types)
    for (bool in_hidden : {true, false})
      cases.add(std::string("linear_cross_entropy/") + name_of(type) + (in_hidden ? "/infinite row" : "/NaN item"),
                [=] {
                  EntropyCase c;
                  c.type = type;
                  EntropyData data(c);
                  (in_hidden ? data.hidden : data.weight).back() = in_hidden ? INFINITY : NAN;
                  const EntropyRun run(c, data);
                  run.forward();
                  expect(!std::isfinite(run.loss.values()[0]), "the loss is finite");
                });
  for (int64_t bad : {-1, 50})
    cases.add("linear_cross_entropy/refusals/target=" + std::to_string(bad), [bad] {
      EntropyCase c;
      c.items = 50;
      EntropyData data(c);
      data.target[13] = bad;
      expect_fault([&] { EntropyRun(c, data).forward(); }, "a target is out of bounds");
    });
}

const Registration registration(11, add_cases);

}  // namespace
}  // namespace recgrela::tests
