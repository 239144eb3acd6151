// selective_scan on the SIMT host, against the recurrence as it is written in double precision.
#include <memory>
#include <random>

#include "kernels/selective_scan/params.h"
#include "tests/case.h"

namespace recgrela::tests {
namespace {

constexpr int64_t kCheckpointRows = cuda::SelectiveScanParams::kCheckpointRows;

struct SelectiveCase {
  DType type = DType::kFloat32;
  int64_t channels = 16, states = 16, segment_rows = 0;
  bool softplus = true, gate = true, skip = true, bias = true, state = true;
  bool wide = true, strided = false, sparse = false;
  Lengths lengths;

  std::string name() const {
    return std::string("selective_scan/") + name_of(type) + "/C=" + std::to_string(channels) +
           "/N=" + std::to_string(states) + (softplus ? "/softplus" : "") + (gate ? "/gate" : "") +
           (skip ? "/skip" : "") + (bias ? "/bias" : "") + (state ? "/state" : "") + (wide ? "" : "/int32") +
           (strided ? "/strided" : "") + (sparse ? "/sparse" : "") +
           (segment_rows ? "/segments=" + std::to_string(segment_rows) : "") + "/L=" + text_of(lengths);
  }
  int64_t batch() const { return static_cast<int64_t>(lengths.size()); }
  int64_t stride(int64_t columns, int64_t more) const {
    return sparse ? int64_t{1} << 30 : strided ? columns + more : columns;
  }
  double tolerance() const { return type == DType::kFloat32 ? 1e-5 : type == DType::kFloat16 ? 2e-3 : 1.6e-2; }
};

struct SelectiveData {
  Doubles u, delta, z, dy, B, C;  // of rows
  Doubles A, D, bias, initial, final_grad;

  explicit SelectiveData(const SelectiveCase& c) {
    const int64_t rows = sum_of(c.lengths), size = c.channels * c.states;
    u = random_numbers(c.type, rows * c.channels, 1, 1);
    delta = random_numbers(c.type, rows * c.channels, 1, 2);
    z = random_numbers(c.type, rows * c.channels, 1, 3);
    dy = random_numbers(c.type, rows * c.channels, 1, 4);
    B = random_numbers(c.type, rows * c.states, 1, 5);
    C = random_numbers(c.type, rows * c.states, 1, 6);
    A = random_numbers(DType::kFloat32, size, 0.7, 7);
    for (double& a : A) a = -std::fabs(a);
    D = random_numbers(DType::kFloat32, c.channels, 1, 8);
    bias = random_numbers(DType::kFloat32, c.channels, 1, 9);
    initial = random_numbers(DType::kFloat32, c.batch() * size, 1, 10);
    final_grad = random_numbers(DType::kFloat32, c.batch() * size, 1, 11);
    if (c.softplus) return;
    for (double& d : delta) d = std::fabs(d);  // steps, or the states would grow
    for (double& b : bias) b = std::fabs(b);
  }
};

// The states around the sequences and their gradients.
struct SelectiveEnds {
  Tensor initial, final, initial_grad, final_grad;
};

struct SelectiveRun {
  const SelectiveCase c;
  const int64_t rows = sum_of(c.lengths);
  const Integers offsets{offsets_of(c.lengths), c.wide};
  Tensor u, delta, z, dy, B, C, A, D, bias;
  Tensor y, kept, du, ddelta, dz, dB, dC, dA, dD, dbias;

  SelectiveRun(const SelectiveCase& c, const SelectiveData& data) : c(c) {
    auto make = [&](const Doubles& values, int64_t columns, int64_t more) {
      Tensor tensor(c.type, rows, columns, c.stride(columns, more), c.sparse);
      tensor.set(values);
      return tensor;
    };
    auto empty = [&](int64_t columns, int64_t more) {
      return Tensor(c.type, rows, columns, c.stride(columns, more), c.sparse);
    };
    u = make(data.u, c.channels, 1), delta = make(data.delta, c.channels, 2), dy = make(data.dy, c.channels, 4);
    if (c.gate) z = make(data.z, c.channels, 3), dz = empty(c.channels, 9);
    B = make(data.B, c.states, 5), C = make(data.C, c.states, 6);
    A = wide(c.channels, c.states), A.set(data.A), dA = wide(c.channels, c.states);
    if (c.skip) D = wide(1, c.channels), D.set(data.D), dD = wide(1, c.channels);
    if (c.bias) bias = wide(1, c.channels), bias.set(data.bias), dbias = wide(1, c.channels);
    y = empty(c.channels, 6), du = empty(c.channels, 7), ddelta = empty(c.channels, 8);
    dB = empty(c.states, 10), dC = empty(c.states, 11);
    kept = wide((rows / kCheckpointRows + c.batch()) * c.channels, c.states);
  }

  static Tensor wide(int64_t rows, int64_t columns) { return Tensor(DType::kFloat32, rows, columns); }
  Tensor states() const { return wide(c.batch() * c.channels, c.states); }
  Tensor states(const Doubles& values) const {
    Tensor tensor = states();
    tensor.set(values);
    return tensor;
  }
  SelectiveEnds ends(const SelectiveData& data) const {
    if (!c.state) return {};
    return {states(data.initial), states(), states(), states(data.final_grad)};
  }
  static const float* floats(const Tensor& tensor) { return static_cast<const float*>(tensor.data()); }
  static float* mutable_floats(const Tensor& tensor) { return static_cast<float*>(tensor.data()); }

  cuda::SelectiveScanParams params(const SelectiveEnds& ends) const {
    cuda::SelectiveScanParams p;
    p.dtype = c.type;
    p.sequences = {offsets.memory.data, c.wide, c.batch(), rows, 0};
    p.channels = c.channels, p.num_states = static_cast<int>(c.states), p.delta_softplus = c.softplus;
    p.segment_rows = c.segment_rows;
    p.u = u.rows(), p.delta = delta.rows(), p.B = B.rows(), p.C = C.rows();
    if (c.gate) p.z = z.rows();
    p.A = floats(A), p.D = floats(D), p.delta_bias = floats(bias);
    p.initial_state = floats(ends.initial), p.checkpoints = mutable_floats(kept);
    return p;
  }

  void forward(const SelectiveEnds& ends) const {
    auto p = params(ends);
    p.y = y.rows(), p.final_state = mutable_floats(ends.final);
    const Memory workspace(cuda::selective_scan_forward_workspace(p));
    p.workspace = workspace.data;
    expect_success(cuda::selective_scan_forward(p, nullptr));
    expect(c.sparse || y.gaps_are_untouched(), "y is written between its rows");
  }

  void backward(const SelectiveEnds& ends) const {
    auto p = params(ends);
    p.d_y = dy.rows(), p.d_u = du.rows(), p.d_delta = ddelta.rows(), p.d_B = dB.rows(), p.d_C = dC.rows();
    if (c.gate) p.d_z = dz.rows();
    p.d_A = mutable_floats(dA), p.d_D = mutable_floats(dD), p.d_delta_bias = mutable_floats(dbias);
    p.d_final_state = floats(ends.final_grad), p.d_initial_state = mutable_floats(ends.initial_grad);
    const Memory workspace(cuda::selective_scan_backward_workspace(p));
    p.workspace = workspace.data;
    expect_success(cuda::selective_scan_backward(p, nullptr));
    for (const Tensor* tensor : {&du, &ddelta, &dB, &dC, &dz})
      expect(c.sparse || !tensor->present() || tensor->gaps_are_untouched(), "a gradient is written between its rows");
  }

  // Of rows, by channels and by states; then sums over all rows.
  NamedTensors by_channel() const {
    NamedTensors out = {{"y", y}, {"du", du}, {"ddelta", ddelta}};
    if (c.gate) out.push_back({"dz", dz});
    return out;
  }
  NamedTensors by_state() const { return {{"dB", dB}, {"dC", dC}}; }
  NamedTensors sums() const {
    NamedTensors out = {{"dA", dA}};
    if (c.skip) out.push_back({"dD", dD});
    if (c.bias) out.push_back({"dbias", dbias});
    return out;
  }
  NamedTensors all(const SelectiveEnds& ends) const {
    NamedTensors out = by_channel();
    for (const NamedTensors& more : {by_state(), sums()}) out.insert(out.end(), more.begin(), more.end());
    if (c.state) out.push_back({"final", ends.final}), out.push_back({"dinitial", ends.initial_grad});
    return out;
  }
};

// In the order of SelectiveRun::all.
Named reference(const SelectiveCase& c, const SelectiveData& data) {
  const int64_t size = c.channels * c.states, rows = sum_of(c.lengths);
  const Lengths offsets = offsets_of(c.lengths);
  Doubles y(rows * c.channels), du(y), ddelta(y), dz(y), dB(rows * c.states), dC(dB), dA(size), dD(c.channels),
      dbias(dD);
  Doubles final(c.batch() * size), dinitial(final);
  for (int64_t b = 0; b < c.batch(); ++b)
    for (int64_t i = 0; i < c.channels; ++i) {
      const int64_t length = offsets[b + 1] - offsets[b], place = b * size + i * c.states;
      Doubles h((length + 1) * c.states), carried(c.states), step(length), slope(length), gate(length, 1);
      for (int64_t n = 0; n < c.states; ++n) h[n] = c.state ? data.initial[place + n] : 0;
      for (int64_t t = 0; t < length; ++t) {
        const int64_t row = offsets[b] + t, at = row * c.channels + i;
        const double x = data.delta[at] + (c.bias ? data.bias[i] : 0);
        step[t] = c.softplus ? std::log1p(std::exp(x)) : x;
        slope[t] = c.softplus ? 1 / (1 + std::exp(-x)) : 1;
        for (int64_t n = 0; n < c.states; ++n) {
          double& next = h[(t + 1) * c.states + n];
          next = std::exp(step[t] * data.A[i * c.states + n]) * h[t * c.states + n] +
                 step[t] * data.u[at] * data.B[row * c.states + n];
          y[at] += data.C[row * c.states + n] * next;
        }
        if (c.skip) y[at] += data.D[i] * data.u[at];
        if (!c.gate) continue;
        const double z = data.z[at], sigmoid = 1 / (1 + std::exp(-z));
        gate[t] = z * sigmoid;
        dz[at] = data.dy[at] * y[at] * sigmoid * (1 + z * (1 - sigmoid));
        y[at] *= gate[t];
      }
      for (int64_t n = 0; n < c.states; ++n) {
        final[place + n] = h[length * c.states + n];
        carried[n] = c.state ? data.final_grad[place + n] : 0;
      }
      for (int64_t t = length - 1; t >= 0; --t) {
        const int64_t row = offsets[b] + t, at = row * c.channels + i;
        const double grad = data.dy[at] * gate[t];
        double driven_grad = 0, step_grad = 0;
        for (int64_t n = 0; n < c.states; ++n) {
          const double a = data.A[i * c.states + n], decay = std::exp(step[t] * a);
          const double g = grad * data.C[row * c.states + n] + carried[n], left = decay * h[t * c.states + n];
          driven_grad += data.B[row * c.states + n] * g;
          step_grad += a * left * g;
          dA[i * c.states + n] += step[t] * left * g;
          dB[row * c.states + n] += step[t] * data.u[at] * g;
          dC[row * c.states + n] += grad * h[(t + 1) * c.states + n];
          carried[n] = decay * g;
        }
        du[at] = step[t] * driven_grad + (c.skip ? data.D[i] * grad : 0);
        ddelta[at] = (data.u[at] * driven_grad + step_grad) * slope[t];
        dD[i] += grad * data.u[at], dbias[i] += ddelta[at];
      }
      for (int64_t n = 0; n < c.states; ++n) dinitial[place + n] = carried[n];
    }
  Named out = {{"y", y}, {"du", du}, {"ddelta", ddelta}};
  if (c.gate) out.push_back({"dz", dz});
  out.push_back({"dB", dB}), out.push_back({"dC", dC}), out.push_back({"dA", dA});
  if (c.skip) out.push_back({"dD", dD});
  if (c.bias) out.push_back({"dbias", dbias});
  if (c.state) out.push_back({"final", final}), out.push_back({"dinitial", dinitial});
  return out;
}

void check(const SelectiveCase& c) {
  const SelectiveData data(c);
  const Named want = reference(c, data);
  const SelectiveRun run(c, data);
  const SelectiveEnds ends = run.ends(data);
  run.forward(ends), run.backward(ends);
  const NamedTensors got = run.all(ends);
  for (size_t i = 0; i < want.size(); ++i)
    expect_close(want[i].first, got[i].second.values(), want[i].second, c.tolerance());
}

// In parts, with the states handed on.
void check_parts(const SelectiveCase& c, uint64_t seed) {
  const SelectiveData data(c);
  const Named want = reference(c, data);
  const Cuts cuts = random_cuts(c.lengths, seed);
  std::vector<std::unique_ptr<SelectiveRun>> runs;
  std::vector<SelectiveEnds> ends;
  for (int part = 0; part < kParts; ++part) {
    SelectiveCase part_case = c;
    part_case.lengths = part_of(c.lengths, cuts, part);
    SelectiveData rows = data;
    for (auto member : {&SelectiveData::u, &SelectiveData::delta, &SelectiveData::z, &SelectiveData::dy})
      rows.*member = part_of(data.*member, c.channels, c.lengths, cuts, part);
    for (auto member : {&SelectiveData::B, &SelectiveData::C})
      rows.*member = part_of(data.*member, c.states, c.lengths, cuts, part);
    runs.push_back(std::make_unique<SelectiveRun>(part_case, rows));
    ends.push_back(runs[part]->ends(data));
    if (part > 0) ends[part].initial = ends[part - 1].final;
    if (part > 0) ends[part - 1].final_grad = ends[part].initial_grad;
  }
  for (int part = 0; part < kParts; ++part) runs[part]->forward(ends[part]);
  for (int part = kParts - 1; part >= 0; --part) runs[part]->backward(ends[part]);
  std::vector<Doubles> got;
  auto collect = [&](NamedTensors (SelectiveRun::*which)() const, auto put_together) {
    for (size_t i = 0; i < (*runs[0].*which)().size(); ++i) {
      std::vector<Doubles> parts;
      for (const auto& run : runs) parts.push_back((*run.*which)()[i].second.values());
      got.push_back(put_together(parts));
    }
  };
  collect(&SelectiveRun::by_channel, [&](auto& parts) { return joined(parts, c.channels, c.lengths, cuts); });
  collect(&SelectiveRun::by_state, [&](auto& parts) { return joined(parts, c.states, c.lengths, cuts); });
  collect(&SelectiveRun::sums, [&](auto& parts) { return sum_of(parts); });
  got.push_back(ends.back().final.values()), got.push_back(ends.front().initial_grad.values());
  for (size_t i = 0; i < want.size(); ++i) expect_close(want[i].first, got[i], want[i].second, 2 * c.tolerance());
}

void check_schedules(const SelectiveCase& c) {
  const SelectiveData data(c);
  auto run = [&] {
    const SelectiveRun run(c, data);
    const SelectiveEnds ends = run.ends(data);
    run.forward(ends), run.backward(ends);
    return run.all(ends);
  };
  set_schedule(0);
  const NamedTensors first = run();
  expect_same_bytes(first, run(), "in a second run");
  for (int schedule = 1; schedule < kSchedules; ++schedule) {
    set_schedule(schedule);
    expect_same_bytes(first, run(), "in another order of threads");
  }
}

void check_offsets(const Lengths& offsets, bool wide, const char* message) {
  SelectiveCase c;
  c.lengths = {3, 4}, c.wide = wide;
  const SelectiveRun run(c, SelectiveData(c));
  const Integers wrong(offsets, wide);
  auto p = run.params({});
  p.y = run.y.rows();
  p.sequences.offsets = wrong.memory.data;
  expect_fault([&] { cuda::selective_scan_forward(p, nullptr); }, message);
}

}  // namespace

void add_selective_scan(std::vector<Case>& cases) {
  std::mt19937 random(13);
  auto one_of = [&random](auto... choices) {
    const std::common_type_t<decltype(choices)...> all[] = {choices...};
    return all[random() % sizeof...(choices)];
  };
  auto add = [&cases](std::string name, std::function<void()> run) {
    cases.push_back({std::move(name), std::move(run)});
  };
  auto draw = [&](DType type, const Lengths& lengths) {
    SelectiveCase c;
    c.type = type, c.lengths = lengths;
    c.channels = one_of(1, 3, 8, 20, 33), c.states = one_of(1, 5, 8, 16, 16, 23, 32);
    c.softplus = one_of(0, 1, 1), c.gate = one_of(0, 1, 1), c.skip = one_of(0, 1, 1), c.bias = one_of(0, 1, 1);
    c.state = one_of(0, 1), c.wide = one_of(0, 1), c.strided = one_of(0, 1);
    return c;
  };
  const Lengths packs[] = {{1}, {4}, {9}, {32}, {33}, {70}, {3, 0, 40, 1, 17, 0}, {0, 1, 2, 3, 0, 65}, {}, {0, 0, 0}};
  for (DType type : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
    for (const Lengths& lengths : packs) {
      const SelectiveCase c = draw(type, lengths);
      add(c.name(), [c] { check(c); });
    }
    // Every count of lanes, rounded up and not, and enough channels for several blocks side by side.
    for (int64_t states : {1, 7, 8, 9, 16, 17, 32, 33, 64, 100, 128, 129, 256}) {
      SelectiveCase c = draw(type, {5, 0, 36});
      c.states = states, c.channels = one_of(3, 20);
      add(c.name(), [c] { check(c); });
    }
    for (int64_t states : {4, 16, 32}) {
      SelectiveCase c = draw(type, {7, 1, 33});
      c.states = states, c.channels = 260;
      add(c.name() + "/columns", [c] { check(c); });
    }
    SelectiveCase several = draw(type, {3, 2});
    several.channels = 20, several.states = 256;
    add(several.name() + "/launches", [several] { check(several); });
    for (int64_t segment_rows : {32, 64}) {
      SelectiveCase c = draw(type, {3, 0, 40, 16, 64, 0, 165, 1});
      c.segment_rows = segment_rows, c.channels = 9, c.state = segment_rows == 32;
      add(c.name(), [c] { check(c); });
    }
    for (int i = 0; i < 3; ++i) {
      SelectiveCase c = draw(type, i % 2 ? Lengths{2, 0, 40, 1, 3, 5, 101} : Lengths{7, 1, 1, 2, 4, 3, 0, 6, 6});
      c.state = true, c.segment_rows = i % 2 ? 32 : 0;
      const uint64_t seed = random();
      add(c.name() + "/parts", [c, seed] { check_parts(c, seed); });
    }
    SelectiveCase c = draw(type, {3, 0, 40, 1, 75});
    c.states = type == DType::kFloat32 ? 16 : 40, c.channels = 20, c.segment_rows = 32;
    add(c.name() + "/schedules", [c] { check_schedules(c); });
    c.segment_rows = 0;
    add(c.name() + "/schedules", [c] { check_schedules(c); });
    c.lengths = {1, 3}, c.sparse = true;
    add(c.name(), [c] { check(c); });
  }
  SelectiveCase c;
  c.lengths = {700, 2}, c.channels = 3;  // cut as the device's size asks for
  add(c.name(), [c] { check(c); });
  c.lengths.assign(1030, 1), c.states = 3;  // more sequences than blocks one below the other
  add(c.name(), [c] { check(c); });
  c.lengths = {9}, c.channels = 0;
  add(c.name(), [c] { check(c); });
  for (bool wide : {true, false}) {
    const std::string name = std::string("selective_scan/refusals/") + (wide ? "int64" : "int32");
    add(name, [wide] {
      check_offsets({1, 3, 7}, wide, "cu_seqlens must start at 0");
      check_offsets({0, 3, 6}, wide, "cu_seqlens must end at the number of rows");
      check_offsets({0, 8, 7}, wide, "cu_seqlens must not decrease");
    });
  }
}

}  // namespace recgrela::tests
