// linear_scan on the SIMT host, against the recurrence as it is written in double precision.
#include <complex>
#include <memory>
#include <random>

#include "kernels/linear_scan/params.h"
#include "tests/case.h"

namespace recgrela::tests {
namespace {

struct ScanCase {
  DType type = DType::kFloat32;
  bool complex = false, per_step = false, state = true, wide = true, strided = false, sparse = false;
  int64_t channels = 64, segment_rows = 0;
  Lengths lengths;

  std::string name() const {
    return std::string("linear_scan/") + (complex ? "complex" : name_of(type)) + "/C=" + std::to_string(channels) +
           (per_step ? "/per_step" : "/constant") + (state ? "/state" : "") + (wide ? "" : "/int32") +
           (strided ? "/strided" : "") + (sparse ? "/sparse" : "") +
           (segment_rows ? "/segments=" + std::to_string(segment_rows) : "") + "/L=" + text_of(lengths);
  }
  int64_t width() const { return complex ? 2 * channels : channels; }
  int64_t batch() const { return static_cast<int64_t>(lengths.size()); }
  // Numbers between rows: side by side, which may be unaligned, or else a multiple of 16 bytes.
  int64_t stride(DType of, int64_t more) const {
    if (sparse) return int64_t{1} << 30;
    const int64_t unit = 16 / size_of(of), rounded = (width() + unit - 1) / unit * unit;
    return strided ? rounded + more * unit : width();
  }
  double tolerance() const { return type == DType::kFloat32 ? 3e-6 : type == DType::kFloat16 ? 2e-3 : 1.6e-2; }
};

// Of magnitudes below 1.
Doubles random_coefficients(const ScanCase& c, int64_t rows) {
  Doubles a = random_numbers(DType::kFloat32, rows * c.width(), 1, 5);
  for (size_t i = 0; i < a.size(); i += c.complex ? 2 : 1) {
    if (c.complex) {
      const std::complex<double> z = std::polar(std::tanh(std::fabs(a[i])) * 0.99, 3 * a[i + 1]);
      a[i] = static_cast<float>(z.real()), a[i + 1] = static_cast<float>(z.imag());
    } else {
      a[i] = static_cast<float>(std::tanh(a[i]) * 0.99);
    }
  }
  return a;
}

struct ScanData {
  Doubles x, dh, a, initial, final_grad;

  explicit ScanData(const ScanCase& c) {
    const int64_t rows = sum_of(c.lengths);
    x = random_numbers(c.type, rows * c.width(), 1, 1);
    dh = random_numbers(c.type, rows * c.width(), 1, 2);
    a = random_coefficients(c, c.per_step ? rows : 1);
    initial = random_numbers(DType::kFloat32, c.batch() * c.width(), 1, 3);
    final_grad = random_numbers(DType::kFloat32, c.batch() * c.width(), 1, 4);
  }
};

// The states around the sequences and their gradients.
struct ScanEnds {
  Tensor initial, final, initial_grad, final_grad;
};

struct ScanRun {
  const ScanCase c;
  const int64_t rows = sum_of(c.lengths);
  const Integers offsets{offsets_of(c.lengths), c.wide};
  Tensor x, dh, a, h, dx, da;

  ScanRun(const ScanCase& c, const ScanData& data) : c(c) {
    x = matrix(c.type, 1), dh = matrix(c.type, 3), h = matrix(c.type, 2), dx = matrix(c.type, 4);
    a = c.per_step ? matrix(DType::kFloat32, 2) : Tensor(DType::kFloat32, 1, c.width());
    da = c.per_step ? matrix(DType::kFloat32, 5) : Tensor(DType::kFloat32, 1, c.width());
    x.set(data.x), dh.set(data.dh), a.set(data.a);
  }

  Tensor matrix(DType type, int64_t more) const {
    return Tensor(type, rows, c.width(), c.stride(type, more), c.sparse);
  }
  Tensor states() const { return Tensor(DType::kFloat32, c.batch(), c.width()); }
  Tensor states(const Doubles& values) const {
    const Tensor tensor = states();
    Tensor(tensor).set(values);
    return tensor;
  }
  ScanEnds ends(const ScanData& data) const {
    if (!c.state) return {};
    return {states(data.initial), states(), states(), states(data.final_grad)};
  }
  cuda::RowMatrix rows_of(const Tensor& tensor) const {
    cuda::RowMatrix rows = tensor.rows();
    if (c.complex) rows.stride /= 2;
    return rows;
  }

  cuda::LinearScanParams params(const ScanEnds& ends) const {
    cuda::LinearScanParams p;
    p.dtype = c.type, p.complex = c.complex, p.per_step = c.per_step;
    p.sequences = {offsets.memory.data, c.wide, c.batch(), rows, 0};
    p.channels = c.channels, p.segment_rows = c.segment_rows;
    p.h = rows_of(h), p.a = rows_of(a), p.initial_state = ends.initial.data();
    return p;
  }

  void forward(const ScanEnds& ends) const {
    auto p = params(ends);
    p.x = rows_of(x), p.final_state = ends.final.data();
    const Memory workspace(cuda::linear_scan_forward_workspace(p));
    p.workspace = workspace.data;
    expect_success(cuda::linear_scan_forward(p, nullptr));
    expect(c.sparse || h.gaps_are_untouched(), "h is written between its rows");
  }

  void backward(const ScanEnds& ends) const {
    auto p = params(ends);
    p.d_h = rows_of(dh), p.d_x = rows_of(dx), p.d_a = rows_of(da);
    p.d_final_state = ends.final_grad.data(), p.d_initial_state = ends.initial_grad.data();
    const Memory workspace(cuda::linear_scan_backward_workspace(p));
    p.workspace = workspace.data;
    expect_success(cuda::linear_scan_backward(p, nullptr));
    expect(c.sparse || (dx.gaps_are_untouched() && da.gaps_are_untouched()), "a gradient is written between its rows");
  }

  NamedTensors both(const ScanEnds& ends) const {
    forward(ends), backward(ends);
    NamedTensors out = {{"h", h}, {"dx", dx}, {"da", da}};
    if (c.state) out.push_back({"final", ends.final}), out.push_back({"dinitial", ends.initial_grad});
    return out;
  }
};

Named reference(const ScanCase& c, const ScanData& data) {
  using Number = std::complex<double>;
  const int64_t parts = c.complex ? 2 : 1, width = c.width();
  const Lengths offsets = offsets_of(c.lengths);
  Doubles h(data.x.size()), dx(data.x.size()), da(data.a.size()), final(data.initial.size()), dinitial(final.size());
  auto get = [&](const Doubles& from, int64_t row, int64_t i) {
    const int64_t at = row * width + i * parts;
    return Number(from[at], c.complex ? from[at + 1] : 0);
  };
  auto put = [&](Doubles& to, int64_t row, int64_t i, Number z, bool add = false) {
    const int64_t at = row * width + i * parts;
    to[at] = z.real() + (add ? to[at] : 0);
    if (c.complex) to[at + 1] = z.imag() + (add ? to[at + 1] : 0);
  };
  for (int64_t b = 0; b < c.batch(); ++b)
    for (int64_t i = 0; i < c.channels; ++i) {
      const Number initial = c.state ? get(data.initial, b, i) : 0;
      Number state = initial;
      for (int64_t row = offsets[b]; row < offsets[b + 1]; ++row) {
        state = get(data.a, c.per_step ? row : 0, i) * state + get(data.x, row, i);
        put(h, row, i, state);
      }
      put(final, b, i, state);
      Number carried = c.state ? get(data.final_grad, b, i) : 0;
      for (int64_t row = offsets[b + 1] - 1; row >= offsets[b]; --row) {
        const int64_t of_a = c.per_step ? row : 0;
        const Number grad = get(data.dh, row, i) + carried;
        put(dx, row, i, grad);
        put(da, of_a, i, grad * std::conj(row == offsets[b] ? initial : get(h, row - 1, i)), true);
        carried = std::conj(get(data.a, of_a, i)) * grad;
      }
      put(dinitial, b, i, carried);
    }
  Named out = {{"h", h}, {"dx", dx}, {"da", da}};
  if (c.state) out.push_back({"final", final}), out.push_back({"dinitial", dinitial});
  return out;
}

void check(const ScanCase& c) {
  const ScanData data(c);
  const Named want = reference(c, data);
  const ScanRun run(c, data);
  const NamedTensors got = run.both(run.ends(data));
  for (size_t i = 0; i < want.size(); ++i)
    expect_close(want[i].first, got[i].second.values(), want[i].second, c.tolerance());
}

// In parts, with the states handed on.
void check_parts(const ScanCase& c, uint64_t seed) {
  const ScanData data(c);
  const Named want = reference(c, data);
  const Cuts cuts = random_cuts(c.lengths, seed);
  std::vector<std::unique_ptr<ScanRun>> runs;
  std::vector<ScanEnds> ends;
  for (int part = 0; part < kParts; ++part) {
    ScanCase part_case = c;
    part_case.lengths = part_of(c.lengths, cuts, part);
    ScanData rows = data;
    rows.x = part_of(data.x, c.width(), c.lengths, cuts, part);
    rows.dh = part_of(data.dh, c.width(), c.lengths, cuts, part);
    if (c.per_step) rows.a = part_of(data.a, c.width(), c.lengths, cuts, part);
    runs.push_back(std::make_unique<ScanRun>(part_case, rows));
    ends.push_back(runs[part]->ends(data));
    if (part > 0) ends[part].initial = ends[part - 1].final;
    if (part > 0) ends[part - 1].final_grad = ends[part].initial_grad;
  }
  for (int part = 0; part < kParts; ++part) runs[part]->forward(ends[part]);
  for (int part = kParts - 1; part >= 0; --part) runs[part]->backward(ends[part]);
  std::vector<Doubles> h, dx, da;
  for (const auto& run : runs)
    h.push_back(run->h.values()), dx.push_back(run->dx.values()), da.push_back(run->da.values());
  const Doubles got[] = {joined(h, c.width(), c.lengths, cuts), joined(dx, c.width(), c.lengths, cuts),
                         c.per_step ? joined(da, c.width(), c.lengths, cuts) : sum_of(da), ends.back().final.values(),
                         ends.front().initial_grad.values()};
  for (size_t i = 0; i < want.size(); ++i) expect_close(want[i].first, got[i], want[i].second, 2 * c.tolerance());
}

void check_schedules(const ScanCase& c) {
  const ScanData data(c);
  auto run = [&] {
    const ScanRun run(c, data);
    return run.both(run.ends(data));
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
  ScanCase c;
  c.lengths = {3, 4}, c.wide = wide;
  const ScanRun run(c, ScanData(c));
  const Integers wrong(offsets, wide);
  auto p = run.params({});
  p.x = run.x.rows();
  p.sequences.offsets = wrong.memory.data;
  expect_fault([&] { cuda::linear_scan_forward(p, nullptr); }, message);
}

}  // namespace

void add_linear_scan(std::vector<Case>& cases) {
  const Lengths packs[] = {{1}, {2},      {7}, {8}, {9}, {199}, {3, 0, 40, 1, 17, 0, 64}, {0, 1, 2, 3, 0, 1, 1, 200},
                           {},  {0, 0, 0}};
  std::mt19937 random(11);
  auto one_of = [&random](auto... choices) {
    const std::common_type_t<decltype(choices)...> all[] = {choices...};
    return all[random() % sizeof...(choices)];
  };
  auto add = [&cases](std::string name, std::function<void()> run) {
    cases.push_back({std::move(name), std::move(run)});
  };
  struct Kind {
    DType type;
    bool complex;
  };
  const Kind kinds[] = {
      {DType::kFloat32, false}, {DType::kFloat16, false}, {DType::kBFloat16, false}, {DType::kFloat32, true}};
  auto draw = [&](Kind kind, const Lengths& lengths) {
    ScanCase c;
    c.type = kind.type, c.complex = kind.complex, c.lengths = lengths;
    c.channels = one_of(1, 3, 8, 36, 64, 130, 264);
    c.per_step = one_of(0, 1), c.state = one_of(0, 1, 1), c.wide = one_of(0, 1), c.strided = one_of(0, 1);
    return c;
  };
  for (const Kind kind : kinds) {
    for (const Lengths& lengths : packs)
      for (int i = 0; i < 2; ++i) {
        const ScanCase c = draw(kind, lengths);
        add(c.name(), [c] { check(c); });
      }
    for (bool per_step : {false, true})
      for (int64_t segment_rows : {1, 16, 23}) {
        ScanCase c = draw(kind, {3, 0, 40, 16, 17, 0, 164, 1});
        c.per_step = per_step, c.segment_rows = segment_rows;
        add(c.name(), [c] { check(c); });
      }
    for (int i = 0; i < 4; ++i) {
      ScanCase c = draw(kind, i % 2 ? Lengths{2, 0, 40, 1, 17, 3, 5, 130} : Lengths{7, 1, 1, 2, 4, 3, 0, 6, 6});
      c.state = true, c.per_step = i / 2, c.segment_rows = i % 2 ? 20 : 0;
      const uint64_t seed = random();
      add(c.name() + "/parts", [c, seed] { check_parts(c, seed); });
    }
    for (bool per_step : {false, true}) {
      ScanCase c = draw(kind, {3, 0, 40, 1, 17, 0, 300});
      c.per_step = per_step, c.segment_rows = 32;
      add(c.name() + "/schedules", [c] { check_schedules(c); });
      c.lengths = {1, 3}, c.segment_rows = 0, c.sparse = true;
      add(c.name(), [c] { check(c); });
      c.lengths = {700, 2}, c.channels = 8, c.sparse = false;  // cut as the device's size asks for
      add(c.name(), [c] { check(c); });
    }
  }
  for (bool wide : {true, false}) {
    const std::string name = std::string("linear_scan/refusals/") + (wide ? "int64" : "int32");
    add(name, [wide] {
      check_offsets({1, 3, 7}, wide, "cu_seqlens must start at 0");
      check_offsets({0, 3, 6}, wide, "cu_seqlens must end at the number of rows");
      check_offsets({0, 8, 7}, wide, "cu_seqlens must not decrease");
    });
  }
}

}  // namespace recgrela::tests
