// causal_conv1d on the SIMT host.
#include <atomic>
#include <memory>
#include <random>

#include "cpu/causal_conv1d.h"
#include "kernels/causal_conv1d/params.h"
#include "tests/case.h"

namespace recgrela::tests {
namespace {

struct ConvCase {
  DType type = DType::kFloat32;
  int64_t channels = 64;
  int width = 4;
  bool silu = true, bias = true, wide = true, strided = false, sparse = false;
  Lengths lengths;

  std::string name() const {
    return std::string("causal_conv1d/") + name_of(type) + "/C=" + std::to_string(channels) +
           "/K=" + std::to_string(width) + (silu ? "/silu" : "") + (bias ? "/bias" : "") + (wide ? "" : "/int32") +
           (strided ? "/strided" : "") + (sparse ? "/sparse" : "") + "/L=" + text_of(lengths);
  }
  // Between rows: side by side, which may be unaligned, or else a multiple of 16 bytes.
  int64_t stride(int64_t more) const {
    if (sparse) return int64_t{1} << 30;
    const int64_t unit = 16 / size_of(type), rounded = (channels + unit - 1) / unit * unit;
    return strided ? rounded + more * unit : channels;
  }
  double tolerance() const { return type == DType::kFloat32 ? 1e-6 : type == DType::kFloat16 ? 1e-3 : 8e-3; }
};

struct ConvData {
  Doubles x, dy, weight, bias;

  ConvData(const ConvCase& c, int64_t rows) {
    x = random_numbers(c.type, rows * c.channels, 1, 1);
    dy = random_numbers(c.type, rows * c.channels, 1, 2);
    weight = random_numbers(c.type, c.channels * c.width, 0.5, 3);
    bias = random_numbers(c.type, c.channels, 0.5, 4);
  }
};

// The values a sequence begins with or hands on, and their gradients.
struct ConvEnds {
  Tensor initial, final, initial_grad, final_grad;
};

struct ConvRun {
  const ConvCase& c;
  const Lengths lengths;
  const int64_t rows = sum_of(lengths);
  const Integers offsets{offsets_of(lengths), c.wide};
  Tensor x, dy, weight, bias;

  ConvRun(const ConvCase& c, const Lengths& lengths, const ConvData& data) : c(c), lengths(lengths) {
    x = Tensor(c.type, rows, c.channels, c.stride(1), c.sparse),
    dy = Tensor(c.type, rows, c.channels, c.stride(3), c.sparse);
    weight = Tensor(c.type, c.channels, c.width), bias = Tensor(c.type, 1, c.channels);
    x.set(data.x), dy.set(data.dy), weight.set(data.weight), bias.set(data.bias);
  }

  Tensor ends() const { return Tensor(c.type, static_cast<int64_t>(lengths.size()) * (c.width - 1), c.channels); }

  cuda::CausalConv1dParams params(const ConvEnds& ends) const {
    cuda::CausalConv1dParams p;
    p.dtype = c.type;
    p.sequences = {offsets.memory.data, c.wide, static_cast<int64_t>(lengths.size()), rows, 0};
    p.channels = c.channels, p.kernel_size = c.width, p.silu = c.silu;
    p.x = x.rows(), p.weight = weight.data(), p.bias = c.bias ? bias.data() : nullptr;
    p.initial_history = ends.initial.data();
    return p;
  }

  NamedTensors forward(const ConvEnds& ends) const {
    const Tensor y(c.type, rows, c.channels, c.stride(2), c.sparse);
    auto p = params(ends);
    p.y = y.rows(), p.final_history = ends.final.data();
    expect_success(cuda::causal_conv1d_forward(p, nullptr));
    expect(c.sparse || y.gaps_are_untouched(), "y is written between its rows");
    return {{"y", y}};
  }

  NamedTensors backward(const ConvEnds& ends) const {
    const Tensor dx(c.type, rows, c.channels, c.stride(4), c.sparse), dw(c.type, c.channels, c.width);
    const Tensor db = c.bias ? Tensor(c.type, 1, c.channels) : Tensor();
    auto p = params(ends);
    p.d_y = dy.rows(), p.d_x = dx.rows(), p.d_weight = dw.data(), p.d_bias = db.data();
    p.d_final_history = ends.final_grad.data(), p.d_initial_history = ends.initial_grad.data();
    const Memory workspace(cuda::causal_conv1d_backward_workspace(p));
    p.workspace = workspace.data;
    expect_success(cuda::causal_conv1d_backward(p, nullptr));
    expect(c.sparse || dx.gaps_are_untouched(), "dx is written between its rows");
    NamedTensors out = {{"dx", dx}, {"dweight", dw}};
    if (c.bias) out.push_back({"dbias", db});
    return out;
  }
};

Named reference(const ConvCase& c, const ConvData& data) {
  const int64_t n = sum_of(c.lengths) * c.channels;
  const Lengths offsets = offsets_of(c.lengths);
  cpu::CausalConv1dParams<double> p;
  p.groups = cpu::Groups::of(static_cast<int64_t>(c.lengths.size()), c.channels * c.width);
  p.channels = c.channels, p.kernel_size = c.width, p.silu = c.silu;
  p.cu_seqlens = offsets.data();
  p.x = {data.x.data(), c.channels}, p.weight = data.weight.data(), p.bias = c.bias ? data.bias.data() : nullptr;
  Doubles y(n), dx(n), dw(c.channels * c.width), db(c.channels);
  Doubles dw_partial(p.groups.count * c.channels * c.width), db_partial(p.groups.count * c.channels);
  p.y = {y.data(), c.channels}, p.d_y = {data.dy.data(), c.channels}, p.d_x = {dx.data(), c.channels};
  p.d_weight = dw_partial.data(), p.d_bias = c.bias ? db_partial.data() : nullptr;
  const auto& kernels = cpu::causal_conv1d_kernels<double>();
  for (bool backward : {false, true}) {
    cpu::WorkQueue queue(p.num_items());
    p.queue = &queue;
    const Memory scratch(kernels.scratch(p, backward) * sizeof(double));
    (backward ? kernels.backward : kernels.forward)(p, reinterpret_cast<double*>(scratch.data));
  }
  for (size_t i = 0; i < dw_partial.size(); ++i) dw[i % dw.size()] += dw_partial[i];
  for (size_t i = 0; c.bias && i < db_partial.size(); ++i) db[i % db.size()] += db_partial[i];
  Named out = {{"y", y}, {"dx", dx}, {"dweight", dw}};
  if (c.bias) out.push_back({"dbias", db});
  return out;
}

NamedTensors run(const ConvCase& c, const ConvData& data) {
  const ConvRun run(c, c.lengths, data);
  NamedTensors out = run.forward({});
  for (auto& gradient : run.backward({})) out.push_back(std::move(gradient));
  return out;
}

void check(const ConvCase& c) {
  const ConvData data(c, sum_of(c.lengths));
  const Named want = reference(c, data);
  const NamedTensors got = run(c, data);
  for (size_t i = 0; i < want.size(); ++i)
    expect_close(want[i].first, got[i].second.values(), want[i].second, c.tolerance());
}

// In parts, with the last values handed on.
void check_parts(const ConvCase& c, uint64_t seed) {
  const ConvData data(c, sum_of(c.lengths));
  const Named want = reference(c, data);
  const Cuts cuts = random_cuts(c.lengths, seed);
  std::vector<std::unique_ptr<ConvRun>> runs;
  std::vector<ConvEnds> ends(kParts);
  for (int part = 0; part < kParts; ++part) {
    ConvData rows = data;
    rows.x = part_of(data.x, c.channels, c.lengths, cuts, part);
    rows.dy = part_of(data.dy, c.channels, c.lengths, cuts, part);
    runs.push_back(std::make_unique<ConvRun>(c, part_of(c.lengths, cuts, part), rows));
    ends[part].final = runs[part]->ends();
    if (part > 0) ends[part].initial = ends[part - 1].final;
    if (part > 0) ends[part].initial_grad = ends[part - 1].final_grad = runs[part]->ends();
  }
  std::vector<NamedTensors> got;
  for (int part = 0; part < kParts; ++part) got.push_back(runs[part]->forward(ends[part]));
  for (int part = kParts - 1; part >= 0; --part)
    for (auto& gradient : runs[part]->backward(ends[part])) got[part].push_back(gradient);
  for (size_t i = 0; i < want.size(); ++i) {
    std::vector<Doubles> parts;
    for (const NamedTensors& tensors : got) parts.push_back(tensors[i].second.values());
    expect_close(want[i].first, i < 2 ? joined(parts, c.channels, c.lengths, cuts) : sum_of(parts), want[i].second,
                 2 * c.tolerance());
  }
  // What comes out at the end are the last rows, zeros where there are fewer.
  Doubles last;
  const Lengths offsets = offsets_of(c.lengths);
  for (size_t s = 0; s < c.lengths.size(); ++s)
    for (int64_t row = offsets[s + 1] - c.width + 1; row < offsets[s + 1]; ++row)
      for (int64_t i = 0; i < c.channels; ++i) last.push_back(row < offsets[s] ? 0 : data.x[row * c.channels + i]);
  expect_close("final_values", ends.back().final.values(), last, 0);
}

void check_schedules(const ConvCase& c) {
  const ConvData data(c, sum_of(c.lengths));
  set_schedule(0);
  const NamedTensors first = run(c, data);
  expect_same_bytes(first, run(c, data), "in a second run");
  for (int schedule = 1; schedule < kSchedules; ++schedule) {
    set_schedule(schedule);
    expect_same_bytes(first, run(c, data), "in another order of threads");
  }
}

void check_offsets(const Lengths& offsets, bool wide, const char* message) {
  ConvCase c;
  c.lengths = {3, 4};
  c.wide = wide;
  const ConvRun run(c, c.lengths, ConvData(c, 7));
  const Integers wrong(offsets, wide);
  auto p = run.params({});
  const Tensor y(c.type, 7, c.channels);
  p.y = y.rows();
  p.sequences.offsets = wrong.memory.data;
  expect_fault([&] { cuda::causal_conv1d_forward(p, nullptr); }, message);
}

}  // namespace

void add_causal_conv1d(std::vector<Case>& cases) {
  const DType types[] = {DType::kFloat32, DType::kFloat16, DType::kBFloat16};
  const Lengths packs[] = {
      {1}, {2}, {15}, {16}, {17}, {199}, {257}, {3, 0, 40, 1, 17, 0, 64}, {0, 1, 2, 3, 0, 1, 1, 200}, {}, {0, 0, 0}};
  std::mt19937 random(7);
  auto one_of = [&random](auto... choices) {
    const std::common_type_t<decltype(choices)...> all[] = {choices...};
    return all[random() % sizeof...(choices)];
  };
  auto add = [&cases](std::string name, std::function<void()> run) {
    cases.push_back({std::move(name), std::move(run)});
  };
  auto draw = [&](DType type, const Lengths& lengths) {
    ConvCase c;
    c.type = type, c.lengths = lengths;
    c.channels = one_of(1, 3, 8, 36, 64, 130, 264);
    c.width = one_of(2, 3, 4);
    c.silu = one_of(0, 1), c.bias = one_of(0, 1, 1), c.wide = one_of(0, 1), c.strided = one_of(0, 1);
    return c;
  };
  for (DType type : types)
    for (const Lengths& lengths : packs)
      for (int i = 0; i < 2; ++i) {
        const ConvCase c = draw(type, lengths);
        add(c.name(), [c] { check(c); });
      }
  for (DType type : types)
    for (int i = 0; i < 4; ++i) {
      const ConvCase c = draw(type, i % 2 ? Lengths{2, 0, 40, 1, 17, 3, 5, 130} : Lengths{7, 1, 1, 2, 4, 3, 0, 6, 6});
      const uint64_t seed = random();
      add(c.name() + "/parts" + std::to_string(i), [c, seed] { check_parts(c, seed); });
    }
  for (DType type : types) {
    ConvCase c = draw(type, {3, 0, 40, 1, 17, 0, 640});
    add(c.name() + "/schedules", [c] { check_schedules(c); });
    c.lengths = {1, 3}, c.sparse = true;
    add(c.name(), [c] { check(c); });
  }
  for (bool wide : {true, false}) {
    const std::string name = std::string("causal_conv1d/refusals/") + (wide ? "int64" : "int32");
    add(name, [wide] {
      check_offsets({1, 3, 7}, wide, "cu_seqlens must start at 0");
      check_offsets({0, 3, 6}, wide, "cu_seqlens must end at the number of rows");
      check_offsets({0, 8, 7}, wide, "cu_seqlens must not decrease");
    });
  }
}

}  // namespace recgrela::tests
