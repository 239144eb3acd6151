// gated_rela_last against its formulas in double precision.
#include <algorithm>
#include <cmath>

#include "kernels/gated_rela_last/params.h"
#include "tests/op_checks.h"

namespace recgrela::tests {
namespace {

struct LastCase {
  DType type = DType::kFloat32;
  int head_dim = 16, heads = 2, kernel_size = 4;
  bool rotary = true, gate = true, is_int64 = true, strided = false, sparse = false, last = true;
  double eps = 1e-6;
  int64_t segment_rows = 0;
  Lengths lengths;

  int64_t batch() const { return static_cast<int64_t>(lengths.size()); }
  int64_t width() const { return int64_t{head_dim} * heads; }
  int64_t stride(int64_t more) const {
    return sparse ? int64_t{1} << 30 : strided ? width() + more * 16 / size_of(type) : 0;
  }
  std::string name() const {
    return std::string("gated_rela_last/") + name_of(type) + "/d=" + std::to_string(head_dim) +
           "/H=" + std::to_string(heads) + "/K=" + std::to_string(kernel_size) + (rotary ? "/rotary" : "") +
           (gate ? "/gate" : "") + (eps > 1e-3 ? "/eps" : "") + (is_int64 ? "" : "/int32") +
           (strided ? "/strided" : "") + (sparse ? "/sparse" : "") + (last ? "" : "/middle") +
           (segment_rows ? "/segments=" + std::to_string(segment_rows) : "") + "/L=" + text_of(lengths);
  }
  double tolerance(const std::string& name) const {
    const bool is_float = type == DType::kFloat32 || name == "d_weight" || name == "d_bias";
    return is_float ? 4e-6 : type == DType::kFloat16 ? 1e-3 : 8e-3;
  }
};

struct LastData {
  Doubles q, k, v, g, d_y, weight, bias, rotary;
  Lengths wanted;
  int64_t positions = 0;

  explicit LastData(const LastCase& c) {
    const int64_t rows = sum_of(c.lengths) * c.width(), batch = c.batch() * c.width();
    q = random_numbers(c.type, batch, 1, 1), g = random_numbers(c.type, batch, 1, 2);
    d_y = random_numbers(c.type, batch, 1, 3);
    k = random_numbers(c.type, rows, 1, 4), v = random_numbers(c.type, rows, 1, 5);
    weight = random_numbers(DType::kFloat32, c.width() * c.kernel_size, 0.5, 6);
    bias = random_numbers(DType::kFloat32, c.width(), 0.5, 7);
    const Lengths offsets = offsets_of(c.lengths);
    for (int64_t b = 0; b < c.batch(); ++b) {
      const int64_t length = c.lengths[b];
      positions = std::max(positions, length);
      // the row of an empty sequence is not read
      wanted.push_back(length == 0 ? -(int64_t{1} << 40) : offsets[b] + (c.last ? length - 1 : length / 2));
    }
    for (int64_t t = 0; t < positions; ++t)
      for (int64_t i = 0; i < c.width() / 2; ++i) {
        const double angle = static_cast<double>(t) * std::pow(1e4, -2.0 * static_cast<double>(i) / c.width());
        rotary.push_back(static_cast<float>(std::cos(angle))), rotary.push_back(static_cast<float>(std::sin(angle)));
      }
  }
};

struct LastRun : RunDefaults {
  using Case = LastCase;
  using Data = LastData;
  using State = Tensor;
  const LastCase c;
  const int64_t rows = sum_of(c.lengths), positions;
  const Integers offsets{offsets_of(c.lengths), c.is_int64}, wanted;
  Tensor q, k, v, g, y, sums, weight, bias, rotary;
  Tensor d_q, d_k, d_v, d_g, d_y, d_weight, d_bias;

  LastRun(const LastCase& c, const LastData& data) : c(c), positions(data.positions), wanted(data.wanted, true) {
    const int64_t b = c.batch(), d = c.width();
    q = matrix(b, 1), k = matrix(rows, 2), v = matrix(rows, 3), y = matrix(b, 4), d_y = matrix(b, 5);
    d_q = matrix(b, 2), d_k = matrix(rows, 1), d_v = matrix(rows, 4);
    q.set(data.q), k.set(data.k), v.set(data.v), d_y.set(data.d_y);
    sums = Tensor(DType::kFloat32, 2 * b, d);
    if (c.gate) g = matrix(b, 1), d_g = matrix(b, 3), g.set(data.g);
    if (c.rotary) rotary = Tensor(DType::kFloat32, positions, d), rotary.set(data.rotary);
    if (c.kernel_size == 0) return;
    weight = Tensor(DType::kFloat32, d, c.kernel_size), d_weight = Tensor(DType::kFloat32, d, c.kernel_size);
    bias = Tensor(DType::kFloat32, 1, d), d_bias = Tensor(DType::kFloat32, 1, d);
    weight.set(data.weight), bias.set(data.bias);
  }

  Tensor matrix(int64_t count, int64_t more) const {
    return Tensor(c.type, count, c.width(), c.stride(more), c.sparse);
  }
  Ends<Tensor> ends(const LastData&) const { return {}; }

  cuda::GatedRelaLastParams params() const {
    cuda::GatedRelaLastParams p;
    p.dtype = c.type;
    p.sequences = {offsets.memory.data, c.is_int64, c.batch(), rows, 0};
    p.num_heads = c.heads, p.head_dim = c.head_dim, p.kernel_size = c.kernel_size;
    p.eps = static_cast<float>(c.eps);
    p.q = q.rows(), p.g = g.rows(), p.k = k.rows(), p.v = v.rows();
    p.wanted = reinterpret_cast<const int64_t*>(wanted.memory.data);
    p.rotary = rotary.as<const float>(), p.rotary_positions = c.rotary ? positions : 0;
    p.conv_weight = weight.as<const float>(), p.conv_bias = bias.as<const float>();
    p.sums = sums.as<float>();
    p.segment_rows = c.segment_rows;
    return p;
  }

  void forward(const Ends<Tensor>&) const {
    auto p = params();
    p.y = y.rows();
    const Memory workspace(cuda::gated_rela_last_forward_workspace(p));
    p.workspace = workspace.data;
    expect_success(cuda::gated_rela_last_forward(p, nullptr));
    expect_untouched_gaps({{"y", y}});
  }

  void backward(const Ends<Tensor>&) const {
    auto p = params();
    p.d_y = d_y.rows(), p.d_q = d_q.rows(), p.d_k = d_k.rows(), p.d_v = d_v.rows(), p.d_g = d_g.rows();
    p.d_conv_weight = d_weight.as<float>(), p.d_conv_bias = d_bias.as<float>();
    const Memory workspace(cuda::gated_rela_last_backward_workspace(p));
    p.workspace = workspace.data;
    expect_success(cuda::gated_rela_last_backward(p, nullptr));
    expect_untouched_gaps({{"d_q", d_q}, {"d_k", d_k}, {"d_v", d_v}, {"d_g", d_g}});
  }

  NamedTensors results(const Ends<Tensor>&) const {
    NamedTensors out = {{"y", y}, {"d_q", d_q}, {"d_k", d_k}, {"d_v", d_v}};
    if (c.gate) out.push_back({"d_g", d_g});
    if (c.kernel_size) out.push_back({"d_weight", d_weight}), out.push_back({"d_bias", d_bias});
    return out;
  }
  // The gradients of q and k are differences of terms as large as d_v; they nearly cancel for few keys.
  static double scale(const LastCase&, const Named& want, const std::string& name) {
    return name == "d_q" || name == "d_k" ? 0.1 * largest_of(want[3].second) : 0;
  }

  static Named reference(const LastCase& c, const LastData& data);
};

double phi_of(double x) { return x > 0 ? x + 1 : std::exp(x); }
double sigmoid_of(double x) { return 1 / (1 + std::exp(-x)); }
// Derivative of SiLU.
double silu_slope(double x) { return sigmoid_of(x) * (1 + x * (1 - sigmoid_of(x))); }

Named LastRun::reference(const LastCase& c, const LastData& data) {
  const int64_t d = c.width(), n = sum_of(c.lengths) * d;
  const Lengths offsets = offsets_of(c.lengths);
  Doubles y(c.batch() * d), d_q(y), d_g(y), d_k(n), d_v(n), d_weight(d * c.kernel_size), d_bias(d);
  // phi and its rotation, of d channels at a position; and the gradient of x from the gradients of both
  auto features = [&](const double* x, int64_t position, double* plain, double* rotated) {
    for (int64_t i = 0; i < d; ++i) plain[i] = rotated[i] = phi_of(x[i]);
    if (!c.rotary) return;
    for (int64_t i = 0; i < d; i += 2) {
      const double cos = data.rotary[position * d + i], sin = data.rotary[position * d + i + 1];
      rotated[i] = plain[i] * cos - plain[i + 1] * sin, rotated[i + 1] = plain[i + 1] * cos + plain[i] * sin;
    }
  };
  auto features_back = [&](const double* x, int64_t position, const Doubles& d_plain, Doubles d_rotated, double* d_x) {
    for (int64_t i = 0; i < d && c.rotary; i += 2) {
      const double cos = data.rotary[position * d + i], sin = data.rotary[position * d + i + 1];
      const double a = d_rotated[i], b = d_rotated[i + 1];
      d_rotated[i] = a * cos + b * sin, d_rotated[i + 1] = b * cos - a * sin;
    }
    for (int64_t i = 0; i < d; ++i) d_x[i] = (d_plain[i] + d_rotated[i]) * (x[i] > 0 ? 1 : std::exp(x[i]));
  };
  for (int64_t b = 0; b < c.batch(); ++b) {
    const int64_t length = c.lengths[b], begin = offsets[b], wanted = data.wanted[b];
    if (length == 0) continue;
    const float eps = static_cast<float>(c.eps);
    Doubles fq(d), rq(d), fk(length * d), rk(length * d), keys(d), d_fq(d), d_rq(d);
    Doubles weights(length * c.heads), z(c.heads), o(d);
    features(&data.q[b * d], wanted - begin, fq.data(), rq.data());
    for (int64_t j = 0; j < length; ++j) features(&data.k[(begin + j) * d], j, &fk[j * d], &rk[j * d]);
    for (int64_t h = 0; h < c.heads; ++h) z[h] = eps * static_cast<double>(length);
    for (int64_t j = 0; j < length; ++j)
      for (int64_t i = 0; i < d; ++i) {
        weights[j * c.heads + i / c.head_dim] += rq[i] * rk[j * d + i];
        z[i / c.head_dim] += fq[i] * fk[j * d + i];
        keys[i] += fk[j * d + i];
      }
    for (int64_t i = 0; i < d; ++i)
      for (int64_t j = 0; j < length; ++j)
        o[i] += weights[j * c.heads + i / c.head_dim] * data.v[(begin + j) * d + i] / z[i / c.head_dim];
    Doubles u(d), d_z(c.heads), d_weights(length * c.heads);
    for (int64_t i = 0; i < d; ++i) {
      const int64_t at = b * d + i, h = i / c.head_dim;
      double conv = c.kernel_size ? data.bias[i] : 0;
      auto source = [&](int64_t k) { return wanted - (c.kernel_size - 1) + k; };
      for (int64_t k = 0; k < c.kernel_size; ++k)
        if (source(k) >= begin) conv += data.weight[i * c.kernel_size + k] * data.v[source(k) * d + i];
      const double shortcut = conv * sigmoid_of(conv), g = data.g[at], gate = c.gate ? g * sigmoid_of(g) : 1;
      y[at] = (o[i] + shortcut) * gate;
      d_g[at] = data.d_y[at] * (o[i] + shortcut) * silu_slope(g);
      const double a = data.d_y[at] * gate, d_conv = a * silu_slope(conv);
      if (c.kernel_size) d_bias[i] += d_conv;
      for (int64_t k = 0; k < c.kernel_size; ++k)
        if (source(k) >= begin) {
          d_weight[i * c.kernel_size + k] += d_conv * data.v[source(k) * d + i];
          d_v[source(k) * d + i] += d_conv * data.weight[i * c.kernel_size + k];
        }
      u[i] = a / z[h], d_z[h] -= a * o[i] / z[h];
    }
    for (int64_t i = 0; i < d; ++i)
      for (int64_t j = 0; j < length; ++j) {
        d_weights[j * c.heads + i / c.head_dim] += u[i] * data.v[(begin + j) * d + i];
        d_v[(begin + j) * d + i] += weights[j * c.heads + i / c.head_dim] * u[i];
      }
    for (int64_t j = 0; j < length; ++j) {
      Doubles d_fk(d), d_rk(d);
      for (int64_t i = 0; i < d; ++i) {
        const double d_weight_j = d_weights[j * c.heads + i / c.head_dim];
        d_fk[i] = d_z[i / c.head_dim] * fq[i], d_rk[i] = d_weight_j * rq[i];
        d_rq[i] += d_weight_j * rk[j * d + i];
      }
      features_back(&data.k[(begin + j) * d], j, d_fk, d_rk, &d_k[(begin + j) * d]);
    }
    for (int64_t i = 0; i < d; ++i) d_fq[i] = d_z[i / c.head_dim] * keys[i];
    features_back(&data.q[b * d], wanted - begin, d_fq, d_rq, &d_q[b * d]);
  }
  Named out = {{"y", y}, {"d_q", d_q}, {"d_k", d_k}, {"d_v", d_v}};
  if (c.gate) out.push_back({"d_g", d_g});
  if (c.kernel_size) out.push_back({"d_weight", d_weight}), out.push_back({"d_bias", d_bias});
  return out;
}

// Expects zeros for an empty sequence and no NaN anywhere, although no row of the sequence is read.
void check_empty(DType type) {
  LastCase c;
  c.type = type, c.lengths = {0, 3, 0};
  const NamedTensors results = run_all<LastRun>(c, LastData(c));
  for (const auto& [name, tensor] : results) {
    const Doubles values = tensor.values();
    for (size_t i = 0; i < values.size(); ++i) {
      expect(std::isfinite(values[i]), name + " is not finite");
      const bool is_row = name == "y" || name == "d_q" || name == "d_g";
      const int64_t b = static_cast<int64_t>(i) / c.width();
      if (is_row && b != 1) expect(values[i] == 0, name + " of an empty sequence is not zero");
    }
  }
}

void add_cases(Cases& cases) {
  const DType types[] = {DType::kFloat32, DType::kFloat16, DType::kBFloat16};
  const Lengths packs[] = {
      {1},    {2}, {63},           {64}, {199}, {3, 0, 40, 1, 17, 0, 64}, {257}, {300}, {0, 2, 3, 0, 1},
      {0, 0}, {},  {33, 130, 0, 5}};
  auto draw = [&](DType type, int head_dim, const Lengths& lengths) {
    LastCase c;
    c.type = type, c.head_dim = head_dim, c.lengths = lengths;
    c.heads = head_dim <= 16 ? cases.one_of(1, 3, 4, 70) : cases.one_of(1, 2, 5);
    c.kernel_size = cases.one_of(0, 1, 3, 4, 4, 9);
    c.rotary = cases.one_of(0, 1, 1), c.gate = cases.one_of(0, 1, 1), c.is_int64 = cases.one_of(0, 1);
    c.strided = cases.one_of(0, 1), c.last = cases.one_of(0, 1);
    c.eps = cases.one_of(1e-6, 0.1);
    c.segment_rows = cases.one_of(0, 0, 16, 50);
    return c;
  };
  size_t next = 0;
  for (DType type : types)
    for (int head_dim : {8, 16, 32, 64, 128})
      for (int i = 0; i < 5; ++i) {
        const LastCase c = draw(type, head_dim, packs[next++ % std::size(packs)]);
        cases.add(c.name(), [c] { check<LastRun>(c); });
      }
  // No option, and each option alone.
  for (DType type : types)
    for (int option = 0; option < 5; ++option) {
      LastCase c;
      c.type = type, c.lengths = {33, 2, 18};
      c.rotary = option == 1, c.gate = option == 2, c.kernel_size = option == 3 ? 4 : 0;
      c.segment_rows = option == 4 ? 16 : 0;
      cases.add(c.name() + "/alone", [c] { check<LastRun>(c); });
    }
  for (DType type : types)
    for (int64_t segment_rows : {0, 16}) {
      LastCase c = draw(type, 16, {3, 0, 40, 1, 70});
      c.heads = 4, c.kernel_size = 4, c.segment_rows = segment_rows;
      cases.add(c.name() + "/schedules", [c] { check_one_result<LastRun>(c); });
      c.lengths = {1, 40}, c.sparse = true, c.kernel_size = 4;
      cases.add(c.name(), [c] { check<LastRun>(c); });
    }
  for (DType type : types)
    cases.add(std::string("gated_rela_last/") + name_of(type) + "/empty", [type] { check_empty(type); });
  auto refuse = [](const void* offsets, bool is_int64, int64_t positions, int head_dim) {
    LastCase c;
    c.lengths = {3, 4}, c.is_int64 = is_int64;
    const LastRun run(c, LastData(c));
    auto p = run.params();
    const Memory workspace(cuda::gated_rela_last_forward_workspace(p));
    p.y = run.y.rows(), p.workspace = workspace.data;
    if (offsets) p.sequences.offsets = offsets;
    const Memory table(sizeof(float) * positions * c.heads * c.head_dim);
    p.rotary = reinterpret_cast<const float*>(table.data), p.rotary_positions = positions;
    p.head_dim = head_dim;
    return cuda::gated_rela_last_forward(p, nullptr);
  };
  add_refusals(cases, "gated_rela_last",
               [refuse](const void* offsets, bool is_int64) { refuse(offsets, is_int64, 8, 16); });
  cases.add("gated_rela_last/refusals", [refuse] {
    expect_fault([&] { refuse(nullptr, true, 3, 16); }, "a sequence is longer than the rotary table");
    expect(refuse(nullptr, true, 4, 24) == cudaErrorInvalidValue, "heads of 24 channels are not refused");
  });
}

const Registration registration(13, add_cases);

}  // namespace
}  // namespace recgrela::tests
