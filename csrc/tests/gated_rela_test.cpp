// gated_rela on the SIMT host.
#include <algorithm>
#include <atomic>
#include <memory>
#include <random>

#include "cpu/gated_rela.h"
#include "kernels/gated_rela/params.h"
#include "tests/case.h"

namespace recgrela::tests {
namespace {

struct RelaCase {
  DType type = DType::kFloat32;
  int head_dim = 16, heads = 2, conv = 4;
  bool causal = true, rotary = true, gate = true, wide = true, strided = false, sparse = false, bounded = false;
  double eps = 1e-6;
  int64_t segment_rows = 0, room_bytes = 0;
  Lengths lengths;

  int64_t width() const { return int64_t{head_dim} * heads; }
  int64_t stride(int64_t more) const {
    if (sparse) return (int64_t{1} << 26) - 64;  // the widest; 40 rows are beyond 2^31 elements
    return strided ? width() + more * 16 / size_of(type) : 0;
  }
  std::string name() const {
    return std::string("gated_rela/") + (causal ? "causal/" : "bidirectional/") + name_of(type) +
           "/d=" + std::to_string(head_dim) + "/H=" + std::to_string(heads) + "/K=" + std::to_string(conv) +
           (rotary ? "/rotary" : "") + (gate ? "/gate" : "") + (eps > 1e-3 ? "/eps" : "") + (wide ? "" : "/int32") +
           (strided ? "/strided" : "") + (sparse ? "/sparse" : "") + (bounded ? "/bounded" : "") +
           (segment_rows ? "/segments=" + std::to_string(segment_rows) : "") + "/L=" + text_of(lengths);
  }
  double tolerance(bool gradient) const {
    const double once = type == DType::kFloat32 ? 4e-6 : type == DType::kFloat16 ? 4e-3 : 2e-2;
    return gradient ? 2 * once : once;
  }
};

struct RelaData {
  Doubles q, k, v, g, dy, weight, bias, rotary;
  int64_t positions = 0;

  explicit RelaData(const RelaCase& c) {
    const int64_t n = sum_of(c.lengths) * c.width();
    Doubles* const inputs[] = {&q, &k, &v, &g, &dy};
    for (uint64_t i = 0; i < 5; ++i) *inputs[i] = random_numbers(c.type, n, 1, i + 1);
    weight = random_numbers(c.type, c.width() * c.conv, 0.5, 6);
    bias = random_numbers(c.type, c.width(), 0.5, 7);
    for (int64_t length : c.lengths) positions = std::max(positions, length);
    for (int64_t t = 0; t < positions; ++t)
      for (int64_t i = 0; i < c.width() / 2; ++i) {
        const double angle = static_cast<double>(t) * std::pow(1e4, -2.0 * static_cast<double>(i) / c.width());
        rotary.push_back(static_cast<float>(std::cos(angle))), rotary.push_back(static_cast<float>(std::sin(angle)));
      }
  }
};

// A state, or its gradient (which has no counts).
struct State {
  Tensor sums, values;
  std::shared_ptr<Integers> counts;

  State() = default;
  State(const RelaCase& c, int64_t sequences)
      : sums(DType::kFloat32, sequences * c.width(), c.head_dim + 1),
        values(c.type, sequences * std::max(c.conv - 1, 0), c.width()),
        counts(std::make_shared<Integers>(Lengths(sequences, -1), true)) {}
};

struct RelaRun {
  const RelaCase& c;
  const Lengths lengths;
  const int64_t rows = sum_of(lengths), count = static_cast<int64_t>(lengths.size());
  const Integers offsets{offsets_of(lengths), c.wide};
  const int64_t positions;
  Tensor q, k, v, g, dy, weight, bias, rotary;

  RelaRun(const RelaCase& c, const Lengths& lengths, const RelaData& data)
      : c(c), lengths(lengths), positions(data.positions) {
    const int64_t d = c.width();
    if (c.strided) {  // two halves of one projection
      const Tensor qk(c.type, rows, 2 * d);
      q = qk.columns(0, d), k = qk.columns(d, 2 * d);
    } else {
      q = matrix(1), k = matrix(2);
    }
    v = matrix(3), dy = matrix(2);
    q.set(data.q), k.set(data.k), v.set(data.v), dy.set(data.dy);
    if (c.gate) g = matrix(1), g.set(data.g);
    if (c.rotary) rotary = Tensor(DType::kFloat32, positions, d), rotary.set(data.rotary);
    if (c.conv) weight = Tensor(c.type, d, c.conv), weight.set(data.weight);
    if (c.conv) bias = Tensor(c.type, 1, d), bias.set(data.bias);
  }

  Tensor matrix(int64_t more) const { return Tensor(c.type, rows, c.width(), c.stride(more), c.sparse); }

  cuda::GatedRelaParams params(const State& initial) const {
    cuda::GatedRelaParams p;
    p.dtype = c.type;
    p.sequences = {offsets.memory.data, c.wide, count, rows, 0};
    if (c.bounded)
      for (int64_t n : lengths) p.sequences.max_length = std::max(p.sequences.max_length, n);
    p.num_heads = c.heads, p.head_dim = c.head_dim, p.kernel_size = c.conv, p.causal = c.causal;
    p.eps = static_cast<float>(c.eps);
    p.q = q.rows(), p.k = k.rows(), p.v = v.rows(), p.g = g.rows();
    p.rotary = static_cast<const float*>(rotary.data()), p.rotary_positions = c.rotary ? positions : 0;
    p.conv_weight = weight.data(), p.conv_bias = bias.data();
    if (initial.counts) {
      p.initial_kv_state = static_cast<const float*>(initial.sums.data()), p.initial_history = initial.values.data();
      p.initial_position = reinterpret_cast<const int64_t*>(initial.counts->memory.data);
    }
    p.segment_rows = c.segment_rows, p.team_workspace_bytes = c.room_bytes;
    return p;
  }

  NamedTensors forward(const State& initial = {}, const State& final = {}) const {
    const Tensor y = matrix(4);
    auto p = params(initial);
    p.y = y.rows();
    if (final.counts) {
      p.final_kv_state = static_cast<float*>(final.sums.data()), p.final_history = final.values.data();
      p.final_position = reinterpret_cast<int64_t*>(final.counts->memory.data);
    }
    const Memory workspace(cuda::gated_rela_forward_workspace(p));
    p.workspace = workspace.data;
    expect_success(cuda::gated_rela_forward(p, nullptr));
    expect(c.sparse || y.gaps_are_untouched(), "y is written between its rows");
    return {{"y", y}};
  }

  NamedTensors backward(const State& initial = {}, const State& final_grad = {}, const State& initial_grad = {}) const {
    const int64_t d = c.width();
    const Tensor qk(c.type, c.strided ? rows : 0, 2 * d);
    NamedTensors out = {{"dq", c.strided ? qk.columns(0, d) : matrix(1)},
                        {"dk", c.strided ? qk.columns(d, 2 * d) : matrix(2)},
                        {"dv", matrix(3)}};
    auto p = params(initial);
    p.d_y = dy.rows(), p.d_q = out[0].second.rows(), p.d_k = out[1].second.rows(), p.d_v = out[2].second.rows();
    if (c.gate) out.push_back({"dg", matrix(2)}), p.d_g = out.back().second.rows();
    if (c.conv) {
      out.push_back({"dweight", Tensor(c.type, d, c.conv)}), p.d_conv_weight = out.back().second.data();
      out.push_back({"dbias", Tensor(c.type, 1, d)}), p.d_conv_bias = out.back().second.data();
    }
    if (final_grad.counts) {
      p.d_final_kv_state = static_cast<const float*>(final_grad.sums.data());
      p.d_final_history = final_grad.values.data();
    }
    if (initial_grad.counts) {
      p.d_initial_kv_state = static_cast<float*>(initial_grad.sums.data());
      p.d_initial_history = initial_grad.values.data();
    }
    const Memory workspace(cuda::gated_rela_backward_workspace(p));
    p.workspace = workspace.data;
    expect_success(cuda::gated_rela_backward(p, nullptr));
    for (const auto& [name, tensor] : out)
      expect(c.sparse || (c.strided && (name == "dq" || name == "dk")) || tensor.gaps_are_untouched(),
             name + " is written between its rows");
    return out;
  }
};

Named reference(const RelaCase& c, const RelaData& data) {
  const int64_t d = c.width(), n = sum_of(c.lengths) * d;
  const Lengths offsets = offsets_of(c.lengths);
  cpu::GatedRelaParams<double> p;
  p.groups = cpu::Groups::of(static_cast<int64_t>(c.lengths.size()), d * c.conv);
  p.max_seqlen = data.positions;
  p.num_heads = c.heads, p.head_dim = c.head_dim, p.kernel_size = c.conv, p.causal = c.causal;
  p.eps = static_cast<float>(c.eps);
  p.cu_seqlens = offsets.data();
  p.q = {data.q.data(), d}, p.k = {data.k.data(), d}, p.v = {data.v.data(), d}, p.d_y = {data.dy.data(), d};
  if (c.gate) p.g = {data.g.data(), d};
  if (c.rotary) p.rotary = data.rotary.data();
  if (c.conv) p.conv_weight = data.weight.data(), p.conv_bias = data.bias.data();
  Named out;
  for (const char* name : {"y", "dq", "dk", "dv", "dg"})
    if (c.gate || name[1] != 'g') out.push_back({name, Doubles(n)});
  p.y = {out[0].second.data(), d};
  p.d_q = {out[1].second.data(), d}, p.d_k = {out[2].second.data(), d}, p.d_v = {out[3].second.data(), d};
  if (c.gate) p.d_g = {out[4].second.data(), d};
  Doubles dw_partial(p.groups.count * d * c.conv), db_partial(c.conv ? p.groups.count * d : 0);
  p.d_conv_weight = dw_partial.data(), p.d_conv_bias = db_partial.data();
  const auto& kernels = cpu::gated_rela_kernels<double>();
  for (bool backward : {false, true}) {
    cpu::WorkQueue queue(p.num_items());
    p.queue = &queue;
    const Memory scratch(kernels.scratch(p, backward) * sizeof(double));
    (backward ? kernels.backward : kernels.forward)(p, reinterpret_cast<double*>(scratch.data));
  }
  if (c.conv) {
    Doubles dw(d * c.conv), db(d);
    for (size_t i = 0; i < dw_partial.size(); ++i) dw[i % dw.size()] += dw_partial[i];
    for (size_t i = 0; i < db_partial.size(); ++i) db[i % db.size()] += db_partial[i];
    out.push_back({"dweight", dw}), out.push_back({"dbias", db});
  }
  return out;
}

// The gradients of q and k are differences of terms as large as dv; where a query has few keys they all but cancel.
double scale_of(const RelaCase& c, const Named& want, size_t i) {
  const bool cancels = (i == 1 || i == 2) && sum_of(c.lengths) < 50;
  return cancels ? 0.04 * largest_of(want[3].second) : 0;
}

NamedTensors run(const RelaCase& c, const RelaData& data) {
  const RelaRun run(c, c.lengths, data);
  NamedTensors out = run.forward();
  for (auto& gradient : run.backward()) out.push_back(std::move(gradient));
  return out;
}

void check(const RelaCase& c) {
  const RelaData data(c);
  const Named want = reference(c, data);
  const NamedTensors got = run(c, data);
  for (size_t i = 0; i < want.size(); ++i)
    expect_close(want[i].first, got[i].second.values(), want[i].second, c.tolerance(i > 0), scale_of(c, want, i));
}

// In parts, with the state handed on.
void check_parts(const RelaCase& c, uint64_t seed) {
  const RelaData data(c);
  const int64_t d = c.width(), count = static_cast<int64_t>(c.lengths.size());
  const Named want = reference(c, data);
  const Cuts cuts = random_cuts(c.lengths, seed);
  std::vector<std::unique_ptr<RelaRun>> runs;
  std::vector<State> states(1), gradients(1);  // before each part and after the last
  std::vector<NamedTensors> got;
  for (int part = 0; part < kParts; ++part) {
    RelaData rows = data;
    for (Doubles RelaData::* x : {&RelaData::q, &RelaData::k, &RelaData::v, &RelaData::g, &RelaData::dy})
      rows.*x = part_of(data.*x, d, c.lengths, cuts, part);
    runs.push_back(std::make_unique<RelaRun>(c, part_of(c.lengths, cuts, part), rows));
    states.emplace_back(c, count);
    got.push_back(runs[part]->forward(states[part], states[part + 1]));
    expect(states[part + 1].counts->values() == cuts[part], "the counts handed on are wrong");
    if (part + 1 < kParts) gradients.emplace_back(c, count);
  }
  gradients.emplace_back();
  for (int part = kParts - 1; part >= 0; --part)
    for (auto& gradient : runs[part]->backward(states[part], gradients[part + 1], gradients[part]))
      got[part].push_back(gradient);
  for (size_t i = 0; i < want.size(); ++i) {
    std::vector<Doubles> parts;
    for (const NamedTensors& tensors : got) parts.push_back(tensors[i].second.values());
    const bool by_rows = i < (c.gate ? 5 : 4);
    expect_close(want[i].first, by_rows ? joined(parts, d, c.lengths, cuts) : sum_of(parts), want[i].second,
                 2 * c.tolerance(i > 0), scale_of(c, want, i));
  }
  const State& end = states.back();
  // The state at the end is that of the whole run's, and the values its last rows.
  const State whole(c, count);
  RelaRun(c, c.lengths, data).forward({}, whole);
  expect_close("final_state", end.sums.values(), whole.sums.values(), c.tolerance(false));
  expect(end.values.bytes() == whole.values.bytes(), "final_values of the parts are not those of the whole");
  Doubles last;
  const Lengths offsets = offsets_of(c.lengths);
  for (size_t s = 0; s < c.lengths.size(); ++s)
    for (int64_t row = offsets[s + 1] - c.conv + 1; row < offsets[s + 1]; ++row)
      for (int64_t i = 0; i < d; ++i) last.push_back(row < offsets[s] ? 0 : data.v[row * d + i]);
  expect_close("final_values", end.values.values(), last, 0);
}

void check_schedules(const RelaCase& c) {
  const RelaData data(c);
  set_schedule(0);
  const NamedTensors first = run(c, data);
  expect_same_bytes(first, run(c, data), "in a second run");
  for (int schedule = 1; schedule < kSchedules; ++schedule) {
    set_schedule(schedule);
    expect_same_bytes(first, run(c, data), "in another order of threads");
  }
}

void check_refusals() {
  RelaCase c;
  c.lengths = {3, 4};
  const RelaData data(c);
  const RelaRun run(c, c.lengths, data);
  const Tensor y = run.matrix(0);
  auto p = run.params({});
  p.y = y.rows();
  const Memory workspace(cuda::gated_rela_forward_workspace(p));
  p.workspace = workspace.data;
  auto with = [&](const Lengths& offsets, int64_t positions, int64_t longest, const char* message) {
    const Integers wrong(offsets, true);
    auto other = p;
    other.sequences.offsets = wrong.memory.data, other.rotary_positions = positions;
    other.sequences.max_length = longest;
    expect_fault([&] { cuda::gated_rela_forward(other, nullptr); }, message);
  };
  with({1, 3, 7}, 4, 0, "cu_seqlens must start at 0");
  with({0, 3, 6}, 4, 0, "cu_seqlens must end at the number of rows");
  with({0, 8, 7}, 8, 0, "cu_seqlens must not decrease");
  with({0, 3, 7}, 3, 0, "a sequence is longer than the rotary table");
  with({0, 3, 7}, 4, 3, "a sequence is longer than max_length");
  p.head_dim = 24;
  expect(cuda::gated_rela_forward(p, nullptr) == cudaErrorInvalidValue, "heads of 24 channels are not refused");
}

}  // namespace

void add_gated_rela(std::vector<Case>& cases) {
  const DType types[] = {DType::kFloat32, DType::kFloat16, DType::kBFloat16};
  const Lengths packs[] = {{1},   {2},   {15}, {16},  {17}, {199}, {3, 0, 40, 1, 17, 0, 64}, {0, 1, 2, 3, 0, 1, 1, 33},
                           {200}, {257}, {},   {0, 0}};
  std::mt19937 random(11);
  auto one_of = [&random](auto... choices) {
    const std::common_type_t<decltype(choices)...> all[] = {choices...};
    return all[random() % sizeof...(choices)];
  };
  auto add = [&cases](std::string name, std::function<void()> run) {
    cases.push_back({std::move(name), std::move(run)});
  };
  auto draw = [&](DType type, int head_dim, bool causal, const Lengths& lengths) {
    RelaCase c;
    c.type = type, c.head_dim = head_dim, c.causal = causal, c.lengths = lengths;
    c.heads = head_dim <= 16 ? one_of(1, 3, 4, 5) : head_dim < 128 ? one_of(1, 2) : 1;
    c.conv = one_of(0, 2, 3, 4, 4);
    c.rotary = one_of(0, 1, 1), c.gate = one_of(0, 1, 1), c.wide = one_of(0, 1), c.strided = one_of(0, 1);
    c.bounded = one_of(0, 1);
    c.eps = one_of(1e-6, 0.1);
    c.segment_rows = one_of(0, 0, 16, 32, 48);
    return c;
  };
  // Each type, width and form meets every pack in turn; the options by lot.
  size_t next = 0;
  for (DType type : types)
    for (int head_dim : {8, 16, 32, 64, 128})
      for (bool causal : {true, false})
        for (int i = 0; i < 5; ++i) {
          const RelaCase c = draw(type, head_dim, causal, packs[next++ % std::size(packs)]);
          add(c.name(), [c] { check(c); });
        }
  // Each option alone, and none.
  for (DType type : types)
    for (bool causal : {true, false})
      for (int option = 0; option < 5; ++option) {
        RelaCase c;
        c.type = type, c.causal = causal, c.lengths = {33, 2, 18};
        c.rotary = option == 1, c.gate = option == 2, c.conv = option == 3 ? 4 : 0;
        c.segment_rows = option == 4 ? 16 : 0;
        add(c.name() + "/alone", [c] { check(c); });
      }
  for (DType type : types)
    for (int head_dim : {8, 16, 32, 64, 128})
      for (int i = 0; i < 2; ++i) {
        RelaCase c =
            draw(type, head_dim, true, i ? Lengths{2, 0, 40, 1, 17, 3, 5, 70} : Lengths{7, 1, 1, 2, 4, 3, 0, 6});
        if (i) c.segment_rows = one_of(16, 32);
        const uint64_t seed = random();
        add(c.name() + "/parts", [c, seed] { check_parts(c, seed); });
      }
  for (DType type : types)
    for (int head_dim : {16, 64})
      for (bool causal : {true, false}) {
        RelaCase c = draw(type, head_dim, causal, {3, 0, 40, 1, 17});
        c.segment_rows = causal == (head_dim == 16) ? 16 : 0, c.conv = 4;
        add(c.name() + "/schedules", [c] { check_schedules(c); });
      }
  // More heads of sequences than the backward has room for at a time: 12 for each multiprocessor.
  for (DType type : types)
    for (bool causal : {true, false}) {
      RelaCase c;
      c.type = type, c.causal = causal, c.heads = 5, c.lengths = {1, 40, 3, 2, 17, 33, 0, 5, 8, 21, 3},
      c.room_bytes = 1;
      c.segment_rows = causal && type == DType::kFloat16 ? 16 : 0;
      add(c.name() + "/launches", [c]() mutable {
        const Lengths lengths = c.lengths;  // enough for 4
        for (int n = 4; n < multiprocessors(); n += 4)
          c.lengths.insert(c.lengths.end(), lengths.begin(), lengths.end());
        check(c);
      });
    }
  for (DType type : types)
    for (bool causal : {true, false}) {
      RelaCase c;
      c.type = type, c.causal = causal, c.lengths = {1, 40}, c.sparse = true;
      add(c.name(), [c] { check(c); });
    }
  add("gated_rela/refusals", check_refusals);
}

}  // namespace recgrela::tests
