// causal_conv1d against the CPU kernels in float64.
#include "cpu/causal_conv1d.h"
#include "kernels/causal_conv1d/params.h"
#include "tests/cpu_reference.h"
#include "tests/op_checks.h"

namespace recgrela::tests {
namespace {

struct ConvCase {
  DType type = DType::kFloat32;
  int64_t channels = 64;
  int kernel_size = 4;
  bool silu = true, bias = true, is_int64 = true, strided = false, sparse = false;
  std::string shifted;  // a matrix whose first row is not aligned; "strides": all rows but the first ones
  Lengths lengths;

  std::string name() const {
    return std::string("causal_conv1d/") + name_of(type) + "/C=" + std::to_string(channels) +
           "/K=" + std::to_string(kernel_size) + (silu ? "/silu" : "") + (bias ? "/bias" : "") +
           (is_int64 ? "" : "/int32") + (strided ? "/strided" : "") + (sparse ? "/sparse" : "") +
           (shifted.empty() ? "" : "/shifted=" + shifted) + "/L=" + text_of(lengths);
  }
  int64_t batch() const { return static_cast<int64_t>(lengths.size()); }
  // Row stride in elements. Strided rows are aligned to 16 bytes; dense rows may not be.
  int64_t stride(int64_t more) const {
    if (sparse) return int64_t{1} << 30;
    const int64_t unit = 16 / size_of(type), rounded = (channels + unit - 1) / unit * unit;
    return strided ? rounded + more * unit : channels + (shifted == "strides");
  }
  double tolerance(const std::string& name) const {
    if (name == "final_history") return 0;
    return type == DType::kFloat32 ? 1e-6 : type == DType::kFloat16 ? 1e-3 : 8e-3;
  }
};

struct ConvData {
  Doubles x, d_y, weight, bias;

  explicit ConvData(const ConvCase& c) {
    const int64_t rows = sum_of(c.lengths);
    x = random_numbers(c.type, rows * c.channels, 1, 1);
    d_y = random_numbers(c.type, rows * c.channels, 1, 2);
    weight = random_numbers(DType::kFloat32, c.channels * c.kernel_size, 0.5, 3);
    bias = random_numbers(DType::kFloat32, c.channels, 0.5, 4);
  }
  ConvData chunk(const ConvCase& c, const Chunks& chunks, int i) const {
    ConvData part = *this;
    part.x = chunks.rows(x, c.channels, i), part.d_y = chunks.rows(d_y, c.channels, i);
    return part;
  }
};

struct ConvRun : RunDefaults {
  using Case = ConvCase;
  using Data = ConvData;
  using State = Tensor;
  const ConvCase c;
  const int64_t rows = sum_of(c.lengths);
  const Integers offsets{offsets_of(c.lengths), c.is_int64};
  Tensor x, y, d_x, d_y, weight, bias, d_weight, d_bias;

  ConvRun(const ConvCase& c, const ConvData& data) : c(c) {
    x = matrix("x", 1), y = matrix("y", 2), d_y = matrix("d_y", 3), d_x = matrix("d_x", 4);
    weight = Tensor(DType::kFloat32, c.channels, c.kernel_size),
    d_weight = Tensor(DType::kFloat32, c.channels, c.kernel_size);
    x.set(data.x), d_y.set(data.d_y), weight.set(data.weight);
    if (!c.bias) return;
    bias = Tensor(DType::kFloat32, 1, c.channels), d_bias = Tensor(DType::kFloat32, 1, c.channels);
    bias.set(data.bias);
  }

  Tensor matrix(const char* name, int64_t more) const {
    const int64_t shift = c.shifted == name, end = shift + c.channels;
    return Tensor(c.type, rows, end, c.stride(more), c.sparse).columns(shift, end);
  }
  Ends<Tensor> ends(const ConvData&) const { return {}; }
  Ends<Tensor> chunk_ends(const ConvData&, int chunk) const {
    auto history = [&] {
      const int64_t shift = c.shifted == "history", end = shift + c.channels;
      return Tensor(c.type, c.batch() * (c.kernel_size - 1), end, c.channels).columns(shift, end);
    };
    Ends<Tensor> ends;
    ends.final = history();
    if (chunk > 0) ends.d_initial = history();
    return ends;
  }

  cuda::CausalConv1dParams params(const Ends<Tensor>& ends) const {
    cuda::CausalConv1dParams p;
    p.dtype = c.type;
    p.sequences = {offsets.memory.data, c.is_int64, c.batch(), rows, 0};
    p.channels = c.channels, p.kernel_size = c.kernel_size, p.silu = c.silu;
    p.x = x.rows(), p.weight = weight.as<const float>(), p.bias = bias.as<const float>();
    p.initial_history = ends.initial.data();
    return p;
  }

  void forward(const Ends<Tensor>& ends) const {
    auto p = params(ends);
    p.y = y.rows(), p.final_history = ends.final.data();
    expect_success(cuda::causal_conv1d_forward(p, nullptr));
    expect_untouched_gaps({{"y", y}});
  }

  void backward(const Ends<Tensor>& ends) const {
    auto p = params(ends);
    p.d_y = d_y.rows(), p.d_x = d_x.rows(), p.d_weight = d_weight.as<float>(), p.d_bias = d_bias.as<float>();
    p.d_final_history = ends.d_final.data(), p.d_initial_history = ends.d_initial.data();
    const Memory workspace(cuda::causal_conv1d_backward_workspace(p));
    p.workspace = workspace.data;
    expect_success(cuda::causal_conv1d_backward(p, nullptr));
    expect_untouched_gaps({{"d_x", d_x}});
  }

  NamedTensors results(const Ends<Tensor>& ends) const {
    NamedTensors out = {{"y", y}, {"d_x", d_x}, {"d_weight", d_weight}};
    if (c.bias) out.push_back({"d_bias", d_bias});
    if (ends.final.present()) out.push_back({"final_history", ends.final});
    return out;
  }
  static bool sums_chunks(const ConvCase&, const std::string& name) { return name == "d_weight" || name == "d_bias"; }

  static Named reference(const ConvCase& c, const ConvData& data) {
    const int64_t n = sum_of(c.lengths) * c.channels;
    const Lengths offsets = offsets_of(c.lengths);
    cpu::CausalConv1dParams<double> p;
    p.groups = cpu::Groups::of(c.batch(), c.channels * c.kernel_size);
    p.channels = c.channels, p.kernel_size = c.kernel_size, p.silu = c.silu;
    p.cu_seqlens = offsets.data();
    p.x = {data.x.data(), c.channels}, p.weight = data.weight.data(), p.bias = c.bias ? data.bias.data() : nullptr;
    const int64_t size = c.channels * c.kernel_size;
    Doubles y(n), d_x(n), weight_partials(p.groups.count * size), bias_partials(p.groups.count * c.channels);
    p.y = {y.data(), c.channels}, p.d_y = {data.d_y.data(), c.channels}, p.d_x = {d_x.data(), c.channels};
    p.d_weight = weight_partials.data(), p.d_bias = c.bias ? bias_partials.data() : nullptr;
    run_on_cpu(cpu::causal_conv1d_kernels<double>(), p);
    Named out = {{"y", y}, {"d_x", d_x}, {"d_weight", sum_of_partials(weight_partials, size)}};
    if (c.bias) out.push_back({"d_bias", sum_of_partials(bias_partials, c.channels)});
    out.push_back({"final_history", last_rows(data.x, c.channels, c.lengths, c.kernel_size - 1)});
    return out;
  }
};

void add_cases(Cases& cases) {
  const DType types[] = {DType::kFloat32, DType::kFloat16, DType::kBFloat16};
  const Lengths packs[] = {
      {1}, {2}, {15}, {16}, {17}, {199}, {257}, {3, 0, 40, 1, 17, 0, 64}, {0, 1, 2, 3, 0, 1, 1, 200}, {}, {0, 0, 0}};
  auto draw = [&](DType type, const Lengths& lengths) {
    ConvCase c;
    c.type = type, c.lengths = lengths;
    c.channels = cases.one_of(1, 3, 8, 36, 64, 130, 264);
    c.kernel_size = cases.one_of(2, 3, 4);
    c.silu = cases.one_of(0, 1), c.bias = cases.one_of(0, 1, 1), c.is_int64 = cases.one_of(0, 1);
    c.strided = cases.one_of(0, 1);
    return c;
  };
  for (DType type : types)
    for (const Lengths& lengths : packs)
      for (int i = 0; i < 2; ++i) {
        const ConvCase c = draw(type, lengths);
        cases.add(c.name(), [c] { check<ConvRun>(c); });
      }
  // Runs of many batches, with boundaries in some of them, at all their rows, and in the rows before and after a run.
  for (DType type : types)
    for (int kernel_size : {2, 4}) {
      ConvCase c;
      c.type = type, c.kernel_size = kernel_size;
      c.channels = kernel_size == 4 ? 264 : 130;  // whole groups, and others
      c.lengths = {97, 1, 1, 1, 1, 2, 160, 1, 3, 0, 402, 5, 30};
      cases.add(c.name(), [c] { check<ConvRun>(c); });
      cases.add(c.name() + "/chunks", [c] { check_chunks<ConvRun>(c, 3); });
    }
  for (DType type : types) {
    ConvCase c;
    c.type = type, c.channels = 8, c.lengths = {3, 9};
    for (const char* shifted : {"x", "y", "d_y", "d_x", "strides"}) {
      c.shifted = shifted, c.strided = c.shifted != "strides";
      cases.add(c.name(), [c] { check<ConvRun>(c); });
    }
    c.shifted = "history", c.strided = false;
    cases.add(c.name() + "/chunks", [c] { check_chunks<ConvRun>(c, 3); });
  }
  {
    ConvCase c;  // more rows than the blocks that run at a time take
    c.channels = 4, c.silu = false, c.lengths = {9000, 3, 27000, 1};
    cases.add(c.name(), [c] { check<ConvRun>(c); });
  }
  for (DType type : types)
    for (int i = 0; i < 4; ++i) {
      const ConvCase c = draw(type, i % 2 ? Lengths{2, 0, 40, 1, 17, 3, 5, 130} : Lengths{7, 1, 1, 2, 4, 3, 0, 6, 6});
      const uint64_t seed = cases.random();
      cases.add(c.name() + "/chunks", [c, seed] { check_chunks<ConvRun>(c, seed); });
    }
  for (DType type : types) {
    ConvCase c = draw(type, {3, 0, 40, 1, 17, 0, 640});
    cases.add(c.name() + "/schedules", [c] { check_one_result<ConvRun>(c); });
    c.lengths = {1, 3}, c.sparse = true;
    cases.add(c.name(), [c] { check<ConvRun>(c); });
  }
  add_refusals(cases, "causal_conv1d", [](const void* offsets, bool is_int64) {
    ConvCase c;
    c.lengths = {3, 4}, c.is_int64 = is_int64;
    const ConvRun run(c, ConvData(c));
    auto p = run.params({});
    p.y = run.y.rows(), p.sequences.offsets = offsets;
    cuda::causal_conv1d_forward(p, nullptr);
  });
}

const Registration registration(7, add_cases);

}  // namespace
}  // namespace recgrela::tests
