// causal_conv1d_step, selective_scan_step and gated_rela_step against their formulas in double precision.
#include <cmath>

#include "kernels/causal_conv1d_step/params.h"
#include "kernels/gated_rela_step/params.h"
#include "kernels/selective_scan_step/params.h"
#include "tests/case.h"

namespace recgrela::tests {
namespace {

constexpr DType kFloat32 = DType::kFloat32;

double silu(double x) { return x / (1 + std::exp(-x)); }
double tolerance(DType type) { return type == kFloat32 ? 3e-6 : type == DType::kFloat16 ? 2e-3 : 1.6e-2; }

// A matrix with gaps between its rows, whose first element may not be aligned to 16 bytes.
Tensor matrix(DType type, int64_t rows, int64_t columns, const Doubles& values, bool shifted = false) {
  Tensor tensor(type, rows, columns + (shifted ? 1 : 0), columns + (shifted ? 3 : 4));
  if (shifted) tensor = tensor.columns(1, columns + 1);
  if (!values.empty()) tensor.set(values);
  return tensor;
}
Tensor vector(const Doubles& values) {
  Tensor tensor(kFloat32, 1, static_cast<int64_t>(values.size()));
  if (!values.empty()) tensor.set(values);
  return tensor;
}

// Returns the convolution of channel c at x, the next row, and moves x into the history [K - 1, C].
double convolve_next(double x, double* history, int64_t channels, int64_t c, const Doubles& weight, int64_t k) {
  double sum = weight[c * k + k - 1] * x;
  for (int64_t i = 0; i < k - 1; ++i) {
    double& h = history[i * channels + c];
    sum += weight[c * k + i] * h;
    h = i + 2 < k ? history[(i + 1) * channels + c] : x;
  }
  return sum;
}

struct ConvCase {
  DType type;
  int64_t batch, channels, kernel_size;
  bool bias, silu;
};

NamedTensors run(const ConvCase& c, bool compare) {
  const int64_t n = c.kernel_size - 1;
  const Doubles x = random_numbers(c.type, c.batch * c.channels, 1, 1);
  Doubles history = random_numbers(c.type, c.batch * n * c.channels, 1, 2);
  const Doubles weight = random_numbers(kFloat32, c.channels * c.kernel_size, 1, 3);
  const Doubles bias = random_numbers(kFloat32, c.channels, 1, 4);
  const Tensor in = matrix(c.type, c.batch, c.channels, x), out = matrix(c.type, c.batch, c.channels, {});
  const Tensor state = matrix(c.type, c.batch, n * c.channels, history), w = vector(weight), b = vector(bias);
  cuda::CausalConv1dStepParams p;
  p.dtype = c.type, p.batch = c.batch, p.channels = c.channels, p.silu = c.silu;
  p.kernel_size = static_cast<int>(c.kernel_size);
  p.x = in.rows(), p.y = out.rows(), p.history = state.rows();
  p.weight = w.as<float>(), p.bias = c.bias ? b.as<float>() : nullptr;
  expect_success(cuda::causal_conv1d_step(p, nullptr));
  expect_untouched_gaps({{"y", out}, {"history", state}});
  Doubles y(x.size());
  for (int64_t i = 0; i < c.batch * c.channels; ++i) {
    const int64_t row = i / c.channels, channel = i % c.channels;
    double* const h = history.data() + row * n * c.channels;
    y[i] = convolve_next(x[i], h, c.channels, channel, weight, c.kernel_size) + (c.bias ? bias[channel] : 0);
    if (c.silu) y[i] = silu(y[i]);
  }
  if (compare) {
    expect_close("y", out.values(), y, tolerance(c.type));
    expect_close("history", state.values(), history, 0);
  }
  return {{"y", out}, {"history", state}};
}

struct SelectiveCase {
  DType type;
  int64_t batch, channels, num_states;
  bool D, z, bias, softplus, shifted;
};

NamedTensors run(const SelectiveCase& c, bool compare) {
  const int64_t rows = c.batch * c.channels, states = c.batch * c.num_states;
  const Doubles u = random_numbers(c.type, rows, 1, 1), z = random_numbers(c.type, rows, 1, 3);
  const Doubles B = random_numbers(c.type, states, 1, 4), C = random_numbers(c.type, states, 1, 5);
  Doubles delta = random_numbers(c.type, rows, 1, 2), A = random_numbers(kFloat32, c.channels * c.num_states, 1, 6);
  Doubles bias = random_numbers(kFloat32, c.channels, 1, 8), h = random_numbers(kFloat32, rows * c.num_states, 1, 9);
  const Doubles D = random_numbers(kFloat32, c.channels, 1, 7);
  for (double& a : A) a = -std::fabs(a);
  if (!c.softplus) {  // steps are positive
    for (Doubles* x : {&delta, &bias})
      for (double& d : *x) d = std::fabs(d);
  }
  auto row_tensor = [&](const Doubles& x, int64_t columns) { return matrix(c.type, c.batch, columns, x, c.shifted); };
  const Tensor tu = row_tensor(u, c.channels), td = row_tensor(delta, c.channels), tz = row_tensor(z, c.channels);
  const Tensor tB = row_tensor(B, c.num_states), tC = row_tensor(C, c.num_states), y = row_tensor({}, c.channels);
  const Tensor tA = vector(A), tD = vector(D), tb = vector(bias);
  const Tensor state = matrix(kFloat32, c.batch, c.channels * c.num_states, h, c.shifted);
  cuda::SelectiveScanStepParams p;
  p.dtype = c.type, p.batch = c.batch, p.channels = c.channels, p.num_states = static_cast<int>(c.num_states);
  p.delta_softplus = c.softplus;
  p.u = tu.rows(), p.delta = td.rows(), p.B = tB.rows(), p.C = tC.rows(), p.y = y.rows(), p.A = tA.as<float>();
  if (c.z) p.z = tz.rows();
  if (c.D) p.D = tD.as<float>();
  if (c.bias) p.delta_bias = tb.as<float>();
  p.state = state.as<float>(), p.state_stride = state.rows().stride;
  expect_success(cuda::selective_scan_step(p, nullptr));
  expect_untouched_gaps({{"y", y}, {"state", state}});
  Doubles want(rows);
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t b = i / c.channels, channel = i % c.channels;
    double step = delta[i] + (c.bias ? bias[channel] : 0);
    if (c.softplus) step = std::log1p(std::exp(step));
    for (int64_t s = 0; s < c.num_states; ++s) {
      double& x = h[i * c.num_states + s];
      x = std::exp(step * A[channel * c.num_states + s]) * x + step * u[i] * B[b * c.num_states + s];
      want[i] += x * C[b * c.num_states + s];
    }
    if (c.D) want[i] += D[channel] * u[i];
    if (c.z) want[i] *= silu(z[i]);
  }
  if (compare) {
    expect_close("y", y.values(), want, tolerance(c.type));
    expect_close("state", state.values(), h, tolerance(kFloat32));
  }
  return {{"y", y}, {"state", state}};
}

struct RelaCase {
  DType type;
  int64_t batch, heads, head_dim, kernel_size;
  bool rotary, gate, shifted;
  int64_t position = 40;
};

NamedTensors run(const RelaCase& c, bool compare) {
  const int64_t d = c.head_dim, width = c.heads * d, n = std::max<int64_t>(c.kernel_size - 1, 0);
  const int64_t part = c.heads * (d + 1) * d;
  const Doubles q = random_numbers(c.type, c.batch * width, 1, 1), k = random_numbers(c.type, c.batch * width, 1, 2);
  const Doubles v = random_numbers(c.type, c.batch * width, 1, 3), g = random_numbers(c.type, c.batch * width, 1, 4);
  Doubles kv = random_numbers(kFloat32, c.batch * part, 1, 5),
          history = random_numbers(c.type, c.batch * n * width, 1, 6);
  const Doubles weight = random_numbers(kFloat32, width * c.kernel_size, 1, 7);
  const Doubles bias = random_numbers(kFloat32, width, 1, 8);
  Lengths turns, positions;
  for (int64_t t = 0; t < width / 2; ++t)
    turns.push_back(static_cast<int64_t>(std::pow(10000.0, -2.0 * t / width) / (2 * M_PI) * 0x1p64));
  for (int64_t b = 0; b < c.batch; ++b) positions.push_back(c.position + 7 * b);
  for (int64_t i = 0; i < c.batch * part; ++i)  // z is a sum of positive numbers
    if (i % ((d + 1) * d) >= d * d) kv[i] = std::fabs(kv[i]);

  auto row_tensor = [&](const Doubles& x) { return matrix(c.type, c.batch, width, x, c.shifted); };
  const Tensor tq = row_tensor(q), tk = row_tensor(k), tv = row_tensor(v), tg = row_tensor(g), y = row_tensor({});
  const Tensor state = matrix(kFloat32, c.batch, part, kv, c.shifted);
  const Tensor rows = matrix(c.type, c.batch, n * width, history, c.shifted), w = vector(weight), b = vector(bias);
  const Integers angles(turns, true), position(positions, true);
  cuda::GatedRelaStepParams p;
  p.dtype = c.type, p.batch = c.batch, p.num_heads = static_cast<int>(c.heads), p.head_dim = static_cast<int>(d);
  p.kernel_size = static_cast<int>(c.kernel_size), p.eps = 1e-6f;
  p.q = tq.rows(), p.k = tk.rows(), p.v = tv.rows(), p.y = y.rows();
  if (c.gate) p.g = tg.rows();
  if (c.rotary) p.turns = reinterpret_cast<const int64_t*>(angles.memory.data);
  p.conv_weight = w.as<float>(), p.conv_bias = b.as<float>();
  p.kv_state = state.as<float>(), p.kv_stride = state.rows().stride, p.history = rows.rows();
  p.position = reinterpret_cast<int64_t*>(position.memory.data), p.position_stride = 1;
  expect_success(cuda::gated_rela_step(p, nullptr));
  expect_untouched_gaps({{"y", y}, {"kv_state", state}, {"history", rows}});

  auto phi = [](double x) { return x > 0 ? x + 1 : std::exp(x); };
  Doubles want(c.batch * width);
  for (int64_t row = 0; row < c.batch; ++row) {
    Doubles fq(width), fk(width), rq(width), rk(width);
    for (int64_t i = 0; i < width; ++i) fq[i] = phi(q[row * width + i]), fk[i] = phi(k[row * width + i]);
    for (int64_t i = 0; i < width; i += 2) {
      const uint64_t turn = static_cast<uint64_t>(positions[row]) * static_cast<uint64_t>(turns[i / 2]);
      const double angle = c.rotary ? 2 * M_PI * static_cast<double>(turn) * 0x1p-64 : 0;
      const double cos = std::cos(angle), sin = std::sin(angle);
      rq[i] = fq[i] * cos - fq[i + 1] * sin, rq[i + 1] = fq[i] * sin + fq[i + 1] * cos;
      rk[i] = fk[i] * cos - fk[i + 1] * sin, rk[i + 1] = fk[i] * sin + fk[i + 1] * cos;
    }
    for (int64_t head = 0; head < c.heads; ++head) {
      double* const S = kv.data() + row * part + head * (d + 1) * d;
      double denominator = 0;
      for (int64_t j = 0; j < d; ++j) {
        S[d * d + j] += fk[head * d + j];
        denominator += fq[head * d + j] * S[d * d + j];
        for (int64_t i = 0; i < d; ++i) {
          S[j * d + i] += rk[head * d + j] * v[row * width + head * d + i];
          want[row * width + head * d + i] += rq[head * d + j] * S[j * d + i];
        }
      }
      for (int64_t i = row * width + head * d; i < row * width + (head + 1) * d; ++i)
        want[i] /= denominator + static_cast<double>(p.eps) * static_cast<double>(positions[row] + 1);
    }
    for (int64_t i = 0; i < width; ++i) {
      double& out = want[row * width + i];
      double* const h = history.data() + row * n * width;
      if (c.kernel_size) out += silu(convolve_next(v[row * width + i], h, width, i, weight, c.kernel_size) + bias[i]);
      if (c.gate) out *= silu(g[row * width + i]);
    }
  }
  if (compare) {
    expect_close("y", y.values(), want, tolerance(c.type));
    expect_close("kv_state", state.values(), kv, tolerance(kFloat32));
    expect_close("history", rows.values(), history, 0);
    const Lengths after = position.values();
    for (int64_t i = 0; i < c.batch; ++i) expect(after[i] == positions[i] + 1, "a position did not advance by one");
  }
  return {{"y", y}, {"kv_state", state}, {"history", rows}};
}

template <typename Case>
void add(Cases& cases, const std::string& name, const Case& c) {
  cases.add(name, [c] { run(c, true); });
}
template <typename Case>
void add_schedules(Cases& cases, const std::string& name, const Case& c) {
  cases.add(name + "/schedules", [c] { expect_one_result([&] { return run(c, false); }); });
}

void add_cases(Cases& cases) {
  for (DType type : {kFloat32, DType::kFloat16, DType::kBFloat16}) {
    const std::string dtype = name_of(type);
    for (int64_t kernel_size : {1, 2, 3, 4, 7})
      for (int64_t channels : {1, 60, 300}) {
        const ConvCase c{type, channels == 60 ? 9 : 2, channels, kernel_size, channels != 60, kernel_size != 3};
        const std::string sizes = "/C=" + std::to_string(channels) + "/K=" + std::to_string(kernel_size);
        add(cases, "steps/causal_conv1d_step/" + dtype + sizes, c);
      }
    for (int64_t num_states : {1, 3, 4, 5, 16, 20, 64, 300})
      for (bool shifted : {false, true}) {
        const bool full = num_states != 5;
        const SelectiveCase c{type, 3, 37, num_states, full, num_states != 4, full, num_states != 3, shifted};
        const std::string sizes = "/N=" + std::to_string(num_states) + (shifted ? "/shifted" : "");
        add(cases, "steps/selective_scan_step/" + dtype + sizes, c);
        if (num_states == 20 && !shifted) add_schedules(cases, "steps/selective_scan_step/" + dtype, c);
      }
    for (int64_t head_dim : {8, 16, 32, 64, 128})
      for (int64_t kernel_size : {0, 1, 4, 6})
        for (bool shifted : {false, true}) {
          const int64_t heads = head_dim == 8 ? 3 : head_dim == 16 ? 20 : head_dim == 128 ? 1 : 2;
          const RelaCase c{type, 3, heads, head_dim, kernel_size, kernel_size != 1, kernel_size != 6, shifted};
          const std::string sizes = "/d=" + std::to_string(head_dim) + "/K=" + std::to_string(kernel_size);
          const std::string name = "steps/gated_rela_step/" + dtype + sizes + (shifted ? "/shifted" : "");
          add(cases, name, c);
          if (kernel_size == 4 && !shifted) add_schedules(cases, name, c);
        }
    add(cases, "steps/gated_rela_step/" + dtype + "/far",
        RelaCase{type, 2, 4, 16, 4, true, true, false, (int64_t{1} << 40) + 3});
  }
  add(cases, "steps/causal_conv1d_step/empty", ConvCase{kFloat32, 0, 8, 4, true, true});
  add(cases, "steps/selective_scan_step/empty", SelectiveCase{kFloat32, 0, 8, 4, true, true, true, true, false});
  add(cases, "steps/gated_rela_step/empty", RelaCase{kFloat32, 0, 2, 8, 4, true, true, false});
}

const Registration registration(23, add_cases);

}  // namespace
}  // namespace recgrela::tests
