// linear_scan against its recurrence in double precision.
#include <cmath>
#include <complex>

#include "kernels/linear_scan/params.h"
#include "tests/op_checks.h"

namespace recgrela::tests {
namespace {

struct ScanCase {
  DType type = DType::kFloat32;
  bool complex = false, per_step = false, state = true, is_int64 = true, strided = false, sparse = false;
  int64_t channels = 64, segment_rows = 0;
  std::string shifted;  // a matrix whose first row is not aligned; "strides": all rows but the first ones
  Lengths lengths;

  std::string name() const {
    return std::string("linear_scan/") + (complex ? "complex" : name_of(type)) + "/C=" + std::to_string(channels) +
           (per_step ? "/per_step" : "/constant") + (state ? "/state" : "") + (is_int64 ? "" : "/int32") +
           (strided ? "/strided" : "") + (sparse ? "/sparse" : "") + (shifted.empty() ? "" : "/shifted=" + shifted) +
           (segment_rows ? "/segments=" + std::to_string(segment_rows) : "") + "/L=" + text_of(lengths);
  }
  int64_t parts() const { return complex ? 2 : 1; }
  int64_t width() const { return parts() * channels; }
  int64_t batch() const { return static_cast<int64_t>(lengths.size()); }
  // Row stride in elements. Strided rows are aligned to 16 bytes; dense rows may not be.
  int64_t stride(DType of, int64_t more) const {
    if (sparse) return int64_t{1} << 30;
    const int64_t unit = 16 / size_of(of), rounded = (width() + unit - 1) / unit * unit;
    return strided ? rounded + more * unit : width() + (shifted == "strides" ? parts() : 0);
  }
  double tolerance(const std::string&) const {
    return type == DType::kFloat32 ? 3e-6 : type == DType::kFloat16 ? 2e-3 : 1.6e-2;
  }
};

// Coefficients of magnitudes below 1.
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
  Doubles x, d_h, a, initial, d_final;

  explicit ScanData(const ScanCase& c) {
    const int64_t rows = sum_of(c.lengths);
    x = random_numbers(c.type, rows * c.width(), 1, 1);
    d_h = random_numbers(c.type, rows * c.width(), 1, 2);
    a = random_coefficients(c, c.per_step ? rows : 1);
    initial = random_numbers(DType::kFloat32, c.batch() * c.width(), 1, 3);
    d_final = random_numbers(DType::kFloat32, c.batch() * c.width(), 1, 4);
  }
  ScanData chunk(const ScanCase& c, const Chunks& chunks, int i) const {
    ScanData part = *this;
    part.x = chunks.rows(x, c.width(), i), part.d_h = chunks.rows(d_h, c.width(), i);
    if (c.per_step) part.a = chunks.rows(a, c.width(), i);
    return part;
  }
};

struct ScanRun : RunDefaults {
  using Case = ScanCase;
  using Data = ScanData;
  using State = Tensor;
  const ScanCase c;
  const int64_t rows = sum_of(c.lengths);
  const Integers offsets{offsets_of(c.lengths), c.is_int64};
  Tensor x, h, a, d_x, d_h, d_a;

  ScanRun(const ScanCase& c, const ScanData& data) : c(c) {
    x = matrix("x", c.type, 1), d_h = matrix("d_h", c.type, 3);
    h = matrix("h", c.type, 2), d_x = matrix("d_x", c.type, 4);
    a = c.per_step ? matrix("a", DType::kFloat32, 2) : Tensor(DType::kFloat32, 1, c.width());
    d_a = c.per_step ? matrix("d_a", DType::kFloat32, 5) : Tensor(DType::kFloat32, 1, c.width());
    x.set(data.x), d_h.set(data.d_h), a.set(data.a);
  }

  Tensor matrix(const char* name, DType type, int64_t more) const {
    const int64_t shift = c.shifted == name ? c.parts() : 0, end = shift + c.width();
    return Tensor(type, rows, end, c.stride(type, more), c.sparse).columns(shift, end);
  }
  Tensor states() const { return Tensor(DType::kFloat32, c.batch(), c.width()); }
  Tensor states(const Doubles& values) const {
    Tensor tensor = states();
    tensor.set(values);
    return tensor;
  }
  Ends<Tensor> ends(const ScanData& data) const {
    if (!c.state) return {};
    return {states(data.initial), states(), states(), states(data.d_final)};
  }
  Ends<Tensor> chunk_ends(const ScanData& data, int) const { return ends(data); }
  cuda::RowMatrix rows_of(const Tensor& tensor) const {
    cuda::RowMatrix rows = tensor.rows();
    if (c.complex) rows.stride /= 2;
    return rows;
  }

  cuda::LinearScanParams params(const Ends<Tensor>& ends) const {
    cuda::LinearScanParams p;
    p.dtype = c.type, p.complex = c.complex, p.per_step = c.per_step;
    p.sequences = {offsets.memory.data, c.is_int64, c.batch(), rows, 0};
    p.channels = c.channels, p.segment_rows = c.segment_rows;
    p.h = rows_of(h), p.a = rows_of(a), p.initial_state = ends.initial.data();
    return p;
  }

  void forward(const Ends<Tensor>& ends) const {
    auto p = params(ends);
    p.x = rows_of(x), p.final_state = ends.final.data();
    const Memory workspace(cuda::linear_scan_forward_workspace(p));
    p.workspace = workspace.data;
    expect_success(cuda::linear_scan_forward(p, nullptr));
    expect_untouched_gaps({{"h", h}});
  }

  void backward(const Ends<Tensor>& ends) const {
    auto p = params(ends);
    p.d_h = rows_of(d_h), p.d_x = rows_of(d_x), p.d_a = rows_of(d_a);
    p.d_final_state = ends.d_final.data(), p.d_initial_state = ends.d_initial.data();
    const Memory workspace(cuda::linear_scan_backward_workspace(p));
    p.workspace = workspace.data;
    expect_success(cuda::linear_scan_backward(p, nullptr));
    expect_untouched_gaps({{"d_x", d_x}, {"d_a", d_a}});
  }

  NamedTensors results(const Ends<Tensor>& ends) const {
    NamedTensors out = {{"h", h}, {"d_x", d_x}, {"d_a", d_a}};
    if (c.state) out.push_back({"final_state", ends.final}), out.push_back({"d_initial_state", ends.d_initial});
    return out;
  }
  static bool sums_chunks(const ScanCase& c, const std::string& name) { return name == "d_a" && !c.per_step; }
  static Named reference(const ScanCase& c, const ScanData& data);
};

Named ScanRun::reference(const ScanCase& c, const ScanData& data) {
  using Number = std::complex<double>;
  const int64_t parts = c.complex ? 2 : 1, width = c.width();
  const Lengths offsets = offsets_of(c.lengths);
  Doubles h(data.x.size()), d_x(data.x.size()), d_a(data.a.size()), final(data.initial.size()), d_initial(final.size());
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
      Number d_state = c.state ? get(data.d_final, b, i) : 0;
      for (int64_t row = offsets[b + 1] - 1; row >= offsets[b]; --row) {
        const int64_t a_row = c.per_step ? row : 0;
        const Number grad = get(data.d_h, row, i) + d_state;
        put(d_x, row, i, grad);
        put(d_a, a_row, i, grad * std::conj(row == offsets[b] ? initial : get(h, row - 1, i)), true);
        d_state = std::conj(get(data.a, a_row, i)) * grad;
      }
      put(d_initial, b, i, d_state);
    }
  Named out = {{"h", h}, {"d_x", d_x}, {"d_a", d_a}};
  if (c.state) out.push_back({"final_state", final}), out.push_back({"d_initial_state", d_initial});
  return out;
}

void add_cases(Cases& cases) {
  const Lengths packs[] = {{1}, {2},      {7}, {8}, {9}, {199}, {3, 0, 40, 1, 17, 0, 64}, {0, 1, 2, 3, 0, 1, 1, 200},
                           {},  {0, 0, 0}};
  struct Kind {
    DType type;
    bool complex;
  };
  const Kind kinds[] = {
      {DType::kFloat32, false}, {DType::kFloat16, false}, {DType::kBFloat16, false}, {DType::kFloat32, true}};
  auto draw = [&](Kind kind, const Lengths& lengths) {
    ScanCase c;
    c.type = kind.type, c.complex = kind.complex, c.lengths = lengths;
    c.channels = cases.one_of(1, 3, 8, 36, 64, 130, 264);
    c.per_step = cases.one_of(0, 1), c.state = cases.one_of(0, 1, 1), c.is_int64 = cases.one_of(0, 1),
    c.strided = cases.one_of(0, 1);
    return c;
  };
  for (const Kind kind : kinds) {
    for (const Lengths& lengths : packs)
      for (int i = 0; i < 2; ++i) {
        const ScanCase c = draw(kind, lengths);
        cases.add(c.name(), [c] { check<ScanRun>(c); });
      }
    ScanCase plain;
    plain.type = kind.type, plain.complex = kind.complex;
    // Rows are loaded in batches of up to 8, two of them ahead: whole batches of an odd and an even number, and rests.
    for (bool per_step : {false, true})
      for (int64_t channels : {5, 64}) {
        ScanCase c = plain;
        c.per_step = per_step, c.channels = channels, c.lengths = {16, 17, 24, 31, 32, 43};
        cases.add(c.name(), [c] { check<ScanRun>(c); });
      }
    for (const char* shifted : {"x", "h", "a", "d_h", "d_x", "d_a", "strides"}) {
      ScanCase c = plain;
      c.per_step = true, c.channels = 8, c.lengths = {3, 9};
      c.shifted = shifted, c.strided = c.shifted != "strides";
      cases.add(c.name(), [c] { check<ScanRun>(c); });
    }
    // One lane carries the states of many sequences, several lanes those of a long one.
    for (const Lengths& lengths : {Lengths(64, 3), Lengths{300}}) {
      ScanCase c = plain;
      c.per_step = true, c.lengths = lengths;
      c.channels = lengths.size() > 1 ? 264 : 3, c.segment_rows = lengths.size() > 1 ? 2 : 1;
      cases.add(c.name(), [c] { check<ScanRun>(c); });
    }
    for (bool per_step : {false, true})
      for (int64_t segment_rows : {1, 16, 23}) {
        ScanCase c = draw(kind, {3, 0, 40, 16, 17, 0, 164, 1});
        c.per_step = per_step, c.segment_rows = segment_rows;
        cases.add(c.name(), [c] { check<ScanRun>(c); });
      }
    for (int i = 0; i < 4; ++i) {
      ScanCase c = draw(kind, i % 2 ? Lengths{2, 0, 40, 1, 17, 3, 5, 130} : Lengths{7, 1, 1, 2, 4, 3, 0, 6, 6});
      c.state = true, c.per_step = i / 2, c.segment_rows = i % 2 ? 20 : 0;
      const uint64_t seed = cases.random();
      cases.add(c.name() + "/chunks", [c, seed] { check_chunks<ScanRun>(c, seed); });
    }
    for (bool per_step : {false, true}) {
      ScanCase c = draw(kind, {3, 0, 40, 1, 17, 0, 300});
      c.per_step = per_step, c.segment_rows = 32;
      cases.add(c.name() + "/schedules", [c] { check_one_result<ScanRun>(c); });
      c.lengths = {1, 3}, c.segment_rows = 0, c.sparse = true;
      cases.add(c.name(), [c] { check<ScanRun>(c); });
      c.lengths = {700, 2}, c.channels = 8, c.sparse = false;  // cut by the size of the device
      cases.add(c.name(), [c] { check<ScanRun>(c); });
    }
  }
  add_refusals(cases, "linear_scan", [](const void* offsets, bool is_int64) {
    ScanCase c;
    c.lengths = {3, 4}, c.is_int64 = is_int64;
    const ScanRun run(c, ScanData(c));
    auto p = run.params({});
    p.x = run.x.rows(), p.sequences.offsets = offsets;
    cuda::linear_scan_forward(p, nullptr);
  });
}

const Registration registration(11, add_cases);

}  // namespace
}  // namespace recgrela::tests
