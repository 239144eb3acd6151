// selective_scan against its recurrence in double precision.
#include <cmath>

#include "kernels/selective_scan/params.h"
#include "tests/op_checks.h"

namespace recgrela::tests {
namespace {

constexpr int64_t kCheckpointRows = cuda::SelectiveScanParams::kCheckpointRows;

struct SelectiveCase {
  DType type = DType::kFloat32;
  int64_t channels = 16, num_states = 16, segment_rows = 0;
  bool softplus = true, gate = true, skip = true, bias = true, state = true;
  bool is_int64 = true, strided = false, sparse = false;
  Lengths lengths;

  std::string name() const {
    return std::string("selective_scan/") + name_of(type) + "/C=" + std::to_string(channels) +
           "/N=" + std::to_string(num_states) + (softplus ? "/softplus" : "") + (gate ? "/gate" : "") +
           (skip ? "/skip" : "") + (bias ? "/bias" : "") + (state ? "/state" : "") + (is_int64 ? "" : "/int32") +
           (strided ? "/strided" : "") + (sparse ? "/sparse" : "") +
           (segment_rows ? "/segments=" + std::to_string(segment_rows) : "") + "/L=" + text_of(lengths);
  }
  int64_t batch() const { return static_cast<int64_t>(lengths.size()); }
  int64_t stride(int64_t columns, int64_t more) const {
    return sparse ? int64_t{1} << 30 : strided ? columns + more : columns;
  }
  double tolerance(const std::string&) const {
    return type == DType::kFloat32 ? 1e-5 : type == DType::kFloat16 ? 2e-3 : 1.6e-2;
  }
};

struct SelectiveData {
  Doubles u, delta, z, d_y, B, C;  // by rows
  Doubles A, D, bias, initial, d_final;

  explicit SelectiveData(const SelectiveCase& c) {
    const int64_t rows = sum_of(c.lengths), size = c.channels * c.num_states;
    u = random_numbers(c.type, rows * c.channels, 1, 1);
    delta = random_numbers(c.type, rows * c.channels, 1, 2);
    z = random_numbers(c.type, rows * c.channels, 1, 3);
    d_y = random_numbers(c.type, rows * c.channels, 1, 4);
    B = random_numbers(c.type, rows * c.num_states, 1, 5);
    C = random_numbers(c.type, rows * c.num_states, 1, 6);
    A = random_numbers(DType::kFloat32, size, 0.7, 7);
    for (double& a : A) a = -std::fabs(a);
    D = random_numbers(DType::kFloat32, c.channels, 1, 8);
    bias = random_numbers(DType::kFloat32, c.channels, 1, 9);
    initial = random_numbers(DType::kFloat32, c.batch() * size, 1, 10);
    d_final = random_numbers(DType::kFloat32, c.batch() * size, 1, 11);
    if (c.softplus) return;
    for (double& d : delta) d = std::fabs(d);  // negative steps would make the states grow
    for (double& b : bias) b = std::fabs(b);
  }
  SelectiveData chunk(const SelectiveCase& c, const Chunks& chunks, int i) const {
    SelectiveData part = *this;
    for (auto member : {&SelectiveData::u, &SelectiveData::delta, &SelectiveData::z, &SelectiveData::d_y})
      part.*member = chunks.rows(this->*member, c.channels, i);
    for (auto member : {&SelectiveData::B, &SelectiveData::C})
      part.*member = chunks.rows(this->*member, c.num_states, i);
    return part;
  }
};

struct SelectiveRun : RunDefaults {
  using Case = SelectiveCase;
  using Data = SelectiveData;
  using State = Tensor;
  const SelectiveCase c;
  const int64_t rows = sum_of(c.lengths);
  const Integers offsets{offsets_of(c.lengths), c.is_int64};
  Tensor u, delta, z, d_y, B, C, A, D, bias;
  Tensor y, checkpoints, d_u, d_delta, d_z, d_B, d_C, d_A, d_D, d_bias;

  SelectiveRun(const SelectiveCase& c, const SelectiveData& data) : c(c) {
    auto make = [&](const Doubles& values, int64_t columns, int64_t more) {
      Tensor tensor(c.type, rows, columns, c.stride(columns, more), c.sparse);
      tensor.set(values);
      return tensor;
    };
    auto empty = [&](int64_t columns, int64_t more) {
      return Tensor(c.type, rows, columns, c.stride(columns, more), c.sparse);
    };
    u = make(data.u, c.channels, 1), delta = make(data.delta, c.channels, 2), d_y = make(data.d_y, c.channels, 4);
    if (c.gate) z = make(data.z, c.channels, 3), d_z = empty(c.channels, 9);
    B = make(data.B, c.num_states, 5), C = make(data.C, c.num_states, 6);
    A = float_matrix(c.channels, c.num_states), A.set(data.A), d_A = float_matrix(c.channels, c.num_states);
    if (c.skip) D = float_matrix(1, c.channels), D.set(data.D), d_D = float_matrix(1, c.channels);
    if (c.bias) bias = float_matrix(1, c.channels), bias.set(data.bias), d_bias = float_matrix(1, c.channels);
    y = empty(c.channels, 6), d_u = empty(c.channels, 7), d_delta = empty(c.channels, 8);
    d_B = empty(c.num_states, 10), d_C = empty(c.num_states, 11);
    checkpoints = float_matrix((rows / kCheckpointRows + c.batch()) * c.channels, c.num_states);
  }

  static Tensor float_matrix(int64_t rows, int64_t columns) { return Tensor(DType::kFloat32, rows, columns); }
  Tensor states() const { return float_matrix(c.batch() * c.channels, c.num_states); }
  Tensor states(const Doubles& values) const {
    Tensor tensor = states();
    tensor.set(values);
    return tensor;
  }
  Ends<Tensor> ends(const SelectiveData& data) const {
    if (!c.state) return {};
    return {states(data.initial), states(), states(), states(data.d_final)};
  }
  Ends<Tensor> chunk_ends(const SelectiveData& data, int) const { return ends(data); }

  cuda::SelectiveScanParams params(const Ends<Tensor>& ends) const {
    cuda::SelectiveScanParams p;
    p.dtype = c.type;
    p.sequences = {offsets.memory.data, c.is_int64, c.batch(), rows, 0};
    p.channels = c.channels, p.num_states = static_cast<int>(c.num_states), p.delta_softplus = c.softplus;
    p.segment_rows = c.segment_rows;
    p.u = u.rows(), p.delta = delta.rows(), p.B = B.rows(), p.C = C.rows();
    if (c.gate) p.z = z.rows();
    p.A = A.as<float>(), p.D = D.as<float>(), p.delta_bias = bias.as<float>();
    p.initial_state = ends.initial.as<float>(), p.checkpoints = checkpoints.as<float>();
    return p;
  }

  void forward(const Ends<Tensor>& ends) const {
    auto p = params(ends);
    p.y = y.rows(), p.final_state = ends.final.as<float>();
    const Memory workspace(cuda::selective_scan_forward_workspace(p));
    p.workspace = workspace.data;
    expect_success(cuda::selective_scan_forward(p, nullptr));
    expect_untouched_gaps({{"y", y}});
  }

  void backward(const Ends<Tensor>& ends) const {
    auto p = params(ends);
    p.d_y = d_y.rows(), p.d_u = d_u.rows(), p.d_delta = d_delta.rows(), p.d_B = d_B.rows(), p.d_C = d_C.rows();
    if (c.gate) p.d_z = d_z.rows();
    p.d_A = d_A.as<float>(), p.d_D = d_D.as<float>(), p.d_delta_bias = d_bias.as<float>();
    p.d_final_state = ends.d_final.as<float>(), p.d_initial_state = ends.d_initial.as<float>();
    const Memory workspace(cuda::selective_scan_backward_workspace(p));
    p.workspace = workspace.data;
    expect_success(cuda::selective_scan_backward(p, nullptr));
    expect_untouched_gaps({{"d_u", d_u}, {"d_delta", d_delta}, {"d_B", d_B}, {"d_C", d_C}, {"d_z", d_z}});
  }

  NamedTensors results(const Ends<Tensor>& ends) const {
    NamedTensors out = {{"y", y}, {"d_u", d_u}, {"d_delta", d_delta}};
    if (c.gate) out.push_back({"d_z", d_z});
    out.push_back({"d_B", d_B}), out.push_back({"d_C", d_C}), out.push_back({"d_A", d_A});
    if (c.skip) out.push_back({"d_D", d_D});
    if (c.bias) out.push_back({"d_delta_bias", d_bias});
    if (c.state) out.push_back({"final_state", ends.final}), out.push_back({"d_initial_state", ends.d_initial});
    return out;
  }
  static bool sums_chunks(const SelectiveCase&, const std::string& name) {
    return name == "d_A" || name == "d_D" || name == "d_delta_bias";
  }
  static Named reference(const SelectiveCase& c, const SelectiveData& data);
};

Named SelectiveRun::reference(const SelectiveCase& c, const SelectiveData& data) {
  const int64_t size = c.channels * c.num_states, rows = sum_of(c.lengths);
  const Lengths offsets = offsets_of(c.lengths);
  Doubles y(rows * c.channels), d_u(y), d_delta(y), d_z(y), d_B(rows * c.num_states), d_C(d_B), d_A(size),
      d_D(c.channels), d_bias(d_D);
  Doubles final(c.batch() * size), d_initial(final);
  for (int64_t b = 0; b < c.batch(); ++b)
    for (int64_t i = 0; i < c.channels; ++i) {
      const int64_t length = offsets[b + 1] - offsets[b], place = b * size + i * c.num_states;
      Doubles h((length + 1) * c.num_states), d_state(c.num_states), step(length), slope(length), gate(length, 1);
      for (int64_t n = 0; n < c.num_states; ++n) h[n] = c.state ? data.initial[place + n] : 0;
      for (int64_t t = 0; t < length; ++t) {
        const int64_t row = offsets[b] + t, at = row * c.channels + i;
        const double x = data.delta[at] + (c.bias ? data.bias[i] : 0);
        step[t] = c.softplus ? std::log1p(std::exp(x)) : x;
        slope[t] = c.softplus ? 1 / (1 + std::exp(-x)) : 1;
        for (int64_t n = 0; n < c.num_states; ++n) {
          double& next = h[(t + 1) * c.num_states + n];
          next = std::exp(step[t] * data.A[i * c.num_states + n]) * h[t * c.num_states + n] +
                 step[t] * data.u[at] * data.B[row * c.num_states + n];
          y[at] += data.C[row * c.num_states + n] * next;
        }
        if (c.skip) y[at] += data.D[i] * data.u[at];
        if (!c.gate) continue;
        const double z = data.z[at], sigmoid = 1 / (1 + std::exp(-z));
        gate[t] = z * sigmoid;
        d_z[at] = data.d_y[at] * y[at] * sigmoid * (1 + z * (1 - sigmoid));
        y[at] *= gate[t];
      }
      for (int64_t n = 0; n < c.num_states; ++n) {
        final[place + n] = h[length * c.num_states + n];
        d_state[n] = c.state ? data.d_final[place + n] : 0;
      }
      for (int64_t t = length - 1; t >= 0; --t) {
        const int64_t row = offsets[b] + t, at = row * c.channels + i;
        const double grad = data.d_y[at] * gate[t];
        double d_delta_u = 0, d_step = 0;
        for (int64_t n = 0; n < c.num_states; ++n) {
          const double a = data.A[i * c.num_states + n], decay = std::exp(step[t] * a);
          const double g = grad * data.C[row * c.num_states + n] + d_state[n], left = decay * h[t * c.num_states + n];
          d_delta_u += data.B[row * c.num_states + n] * g;
          d_step += a * left * g;
          d_A[i * c.num_states + n] += step[t] * left * g;
          d_B[row * c.num_states + n] += step[t] * data.u[at] * g;
          d_C[row * c.num_states + n] += grad * h[(t + 1) * c.num_states + n];
          d_state[n] = decay * g;
        }
        d_u[at] = step[t] * d_delta_u + (c.skip ? data.D[i] * grad : 0);
        d_delta[at] = (data.u[at] * d_delta_u + d_step) * slope[t];
        d_D[i] += grad * data.u[at], d_bias[i] += d_delta[at];
      }
      for (int64_t n = 0; n < c.num_states; ++n) d_initial[place + n] = d_state[n];
    }
  Named out = {{"y", y}, {"d_u", d_u}, {"d_delta", d_delta}};
  if (c.gate) out.push_back({"d_z", d_z});
  out.push_back({"d_B", d_B}), out.push_back({"d_C", d_C}), out.push_back({"d_A", d_A});
  if (c.skip) out.push_back({"d_D", d_D});
  if (c.bias) out.push_back({"d_delta_bias", d_bias});
  if (c.state) out.push_back({"final_state", final}), out.push_back({"d_initial_state", d_initial});
  return out;
}

void add_cases(Cases& cases) {
  auto draw = [&](DType type, const Lengths& lengths) {
    SelectiveCase c;
    c.type = type, c.lengths = lengths;
    c.channels = cases.one_of(1, 3, 8, 20, 33), c.num_states = cases.one_of(1, 5, 8, 16, 16, 23, 32);
    c.softplus = cases.one_of(0, 1, 1), c.gate = cases.one_of(0, 1, 1), c.skip = cases.one_of(0, 1, 1),
    c.bias = cases.one_of(0, 1, 1);
    c.state = cases.one_of(0, 1), c.is_int64 = cases.one_of(0, 1), c.strided = cases.one_of(0, 1);
    return c;
  };
  const Lengths packs[] = {{1}, {4}, {9}, {32}, {33}, {70}, {3, 0, 40, 1, 17, 0}, {0, 1, 2, 3, 0, 65}, {}, {0, 0, 0}};
  for (DType type : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
    for (const Lengths& lengths : packs) {
      const SelectiveCase c = draw(type, lengths);
      cases.add(c.name(), [c] { check<SelectiveRun>(c); });
    }
    // Every number of lanes, with and without padding, and enough channels for several blocks per segment.
    for (int64_t states : {1, 7, 8, 9, 16, 17, 32, 33, 64, 100, 128, 129, 256}) {
      SelectiveCase c = draw(type, {5, 0, 36});
      c.num_states = states, c.channels = cases.one_of(3, 20);
      cases.add(c.name(), [c] { check<SelectiveRun>(c); });
    }
    for (int64_t states : {4, 16, 32}) {
      SelectiveCase c = draw(type, {7, 1, 33});
      c.num_states = states, c.channels = 260;
      cases.add(c.name() + "/columns", [c] { check<SelectiveRun>(c); });
    }
    // All channels of a block exist, so that rows are read by vectors unless their strides are odd.
    for (auto [states, channels] : {std::pair{8, 64}, {16, 128}, {16, 64}, {32, 16}, {64, 8}, {128, 16}, {256, 2}})
      for (bool strided : {false, true}) {
        SelectiveCase c = draw(type, {33, 6, 0, 20});
        c.num_states = states, c.channels = channels, c.strided = strided;
        cases.add(c.name() + "/whole", [c] { check<SelectiveRun>(c); });
      }
    SelectiveCase several = draw(type, {3, 2});
    several.channels = 20, several.num_states = 256;
    cases.add(several.name() + "/launches", [several] { check<SelectiveRun>(several); });
    for (int64_t segment_rows : {32, 64}) {
      SelectiveCase c = draw(type, {3, 0, 40, 16, 64, 0, 165, 1});
      c.segment_rows = segment_rows, c.channels = 9, c.state = segment_rows == 32;
      cases.add(c.name(), [c] { check<SelectiveRun>(c); });
    }
    for (int i = 0; i < 3; ++i) {
      SelectiveCase c = draw(type, i % 2 ? Lengths{2, 0, 40, 1, 3, 5, 101} : Lengths{7, 1, 1, 2, 4, 3, 0, 6, 6});
      c.state = true, c.segment_rows = i % 2 ? 32 : 0;
      const uint64_t seed = cases.random();
      cases.add(c.name() + "/chunks", [c, seed] { check_chunks<SelectiveRun>(c, seed); });
    }
    SelectiveCase c = draw(type, {3, 0, 40, 1, 75});
    c.num_states = type == DType::kFloat32 ? 16 : 40, c.channels = type == DType::kFloat32 ? 70 : 20,
    c.segment_rows = 32;
    cases.add(c.name() + "/schedules", [c] { check_one_result<SelectiveRun>(c); });
    c.segment_rows = 0;
    cases.add(c.name() + "/schedules", [c] { check_one_result<SelectiveRun>(c); });
    if (type == DType::kFloat32)
      for (auto [states, channels] : {std::pair{24, 40}, {40, 20}, {128, 16}}) {  // rows of B and C for part of a chunk
        SelectiveCase many = c;
        many.num_states = states, many.channels = channels;
        cases.add(many.name() + "/schedules", [many] { check_one_result<SelectiveRun>(many); });
      }
    // Whole blocks of four warps, whose tiles of B and C have 32 rows, and every part of a group at the end.
    SelectiveCase block = draw(type, {75, 34, 5});
    block.num_states = 16, block.channels = 128;
    cases.add(block.name() + "/block", [block] { check<SelectiveRun>(block); });
    if (type == DType::kFloat32)
      cases.add(block.name() + "/block/schedules", [block] { check_one_result<SelectiveRun>(block); });
    c.lengths = {1, 3}, c.sparse = true;
    cases.add(c.name(), [c] { check<SelectiveRun>(c); });
  }
  SelectiveCase c;
  c.lengths = {700, 2}, c.channels = 3;  // cut by the size of the device
  cases.add(c.name(), [c] { check<SelectiveRun>(c); });
  c.lengths.assign(1030, 1), c.num_states = 3;  // more sequences than persistent blocks
  cases.add(c.name(), [c] { check<SelectiveRun>(c); });
  c.lengths = {9}, c.channels = 0;
  cases.add(c.name(), [c] { check<SelectiveRun>(c); });
  for (int64_t states : {8, 32})
    cases.add("selective_scan/infinity/N=" + std::to_string(states), [states] {
      SelectiveCase c;  // a group of rows ends after the last row, which it repeats
      c.lengths = {5}, c.channels = 1, c.num_states = states, c.gate = false;
      SelectiveData data(c);
      for (Doubles* numbers : {&data.B, &data.C, &data.D})
        for (double& x : *numbers) x = std::fabs(x);
      data.u.back() = INFINITY;
      const SelectiveRun run(c, data);
      const auto ends = run.ends(data);
      run.forward(ends);
      expect(run.y.values().back() == INFINITY, "the last row of y is not infinite");
      for (double x : ends.final.values()) expect(x == INFINITY, "the final state is not infinite");
    });
  cases.add("selective_scan/strides", [] {
    SelectiveCase c;
    c.lengths = {3};
    const SelectiveRun run(c, SelectiveData(c));
    auto p = run.params({});
    p.y = run.y.rows(), p.z.stride = int64_t{1} << 31;
    expect(cuda::selective_scan_forward(p, nullptr) == cudaErrorInvalidValue, "a stride of 2^31 is accepted");
  });
  add_refusals(cases, "selective_scan", [](const void* offsets, bool is_int64) {
    SelectiveCase c;
    c.lengths = {3, 4}, c.is_int64 = is_int64;
    const SelectiveRun run(c, SelectiveData(c));
    auto p = run.params({});
    p.y = run.y.rows(), p.sequences.offsets = offsets;
    cuda::selective_scan_forward(p, nullptr);
  });
}

const Registration registration(13, add_cases);

}  // namespace
}  // namespace recgrela::tests
