// Options, inputs, tensors and reference of the tests of gated_rela.
#pragma once

#include <algorithm>
#include <cmath>
#include <memory>

#include "cpu/gated_rela.h"
#include "kernels/gated_rela/params.h"
#include "tests/cpu_reference.h"
#include "tests/op_checks.h"

namespace recgrela::tests {

struct RelaCase {
  DType type = DType::kFloat32;
  int head_dim = 16, heads = 2, kernel_size = 4;
  bool causal = true, rotary = true, gate = true, is_int64 = true, strided = false, sparse = false, bounded = false;
  bool saves = false;  // bidirectional: the backward takes the sums over keys from the forward
  double eps = 1e-6;
  int64_t segment_rows = 0;
  Lengths lengths;

  int64_t batch() const { return static_cast<int64_t>(lengths.size()); }
  int64_t width() const { return int64_t{head_dim} * heads; }
  int64_t stride(int64_t more) const {
    if (sparse) return (int64_t{1} << 26) - 64;  // the largest stride; 40 rows are beyond 2^31 elements
    return strided ? width() + more * 16 / size_of(type) : 0;
  }
  std::string name() const {
    return std::string("gated_rela/") + (causal ? "causal/" : "bidirectional/") + name_of(type) +
           "/d=" + std::to_string(head_dim) + "/H=" + std::to_string(heads) + "/K=" + std::to_string(kernel_size) +
           (rotary ? "/rotary" : "") + (gate ? "/gate" : "") + (eps > 1e-3 ? "/eps" : "") + (is_int64 ? "" : "/int32") +
           (strided ? "/strided" : "") + (sparse ? "/sparse" : "") + (bounded ? "/bounded" : "") +
           (saves ? "/saved" : "") + (segment_rows ? "/segments=" + std::to_string(segment_rows) : "") +
           "/L=" + text_of(lengths);
  }
  double tolerance(const std::string& name) const {
    if (name == "final_history") return 0;
    // Sums over all rows do not contain gradients that are rounded to 16 bits. bfloat16 approximates tanh.
    if (type != DType::kFloat32 && (name == "d_weight" || name == "d_bias"))
      return type == DType::kFloat16 ? 2e-5 : 1e-3;
    const double forward = type == DType::kFloat32 ? 4e-6 : type == DType::kFloat16 ? 4e-3 : 2e-2;
    return name == "y" || name == "final_kv_state" ? forward : 2 * forward;
  }
};

struct RelaData {
  Doubles q, k, v, g, d_y, weight, bias, rotary;
  int64_t positions = 0;

  explicit RelaData(const RelaCase& c) {
    const int64_t n = sum_of(c.lengths) * c.width();
    Doubles* const inputs[] = {&q, &k, &v, &g, &d_y};
    for (uint64_t i = 0; i < 5; ++i) *inputs[i] = random_numbers(c.type, n, 1, i + 1);
    weight = random_numbers(DType::kFloat32, c.width() * c.kernel_size, 0.5, 6);
    bias = random_numbers(DType::kFloat32, c.width(), 0.5, 7);
    for (int64_t length : c.lengths) positions = std::max(positions, length);
    for (int64_t t = 0; t < positions; ++t)
      for (int64_t i = 0; i < c.width() / 2; ++i) {
        const double angle = static_cast<double>(t) * std::pow(1e4, -2.0 * static_cast<double>(i) / c.width());
        rotary.push_back(static_cast<float>(std::cos(angle))), rotary.push_back(static_cast<float>(std::sin(angle)));
      }
  }
  RelaData chunk(const RelaCase& c, const Chunks& chunks, int i) const {
    RelaData part = *this;
    for (auto member : {&RelaData::q, &RelaData::k, &RelaData::v, &RelaData::g, &RelaData::d_y})
      part.*member = chunks.rows(this->*member, c.width(), i);
    return part;
  }
};

// A state or the gradient of one. Gradients do not use the position.
struct RelaState {
  Tensor kv_state, history;
  std::shared_ptr<Integers> position;

  RelaState() = default;
  explicit RelaState(const RelaCase& c)
      : kv_state(DType::kFloat32, c.batch() * c.width(), c.head_dim + 1),
        history(c.type, c.batch() * std::max(c.kernel_size - 1, 0), c.width()),
        position(std::make_shared<Integers>(Lengths(c.batch(), -1), true)) {}
  bool present() const { return kv_state.present(); }
  int64_t* positions() const { return present() ? reinterpret_cast<int64_t*>(position->memory.data) : nullptr; }
};

struct RelaRun : RunDefaults {
  using Case = RelaCase;
  using Data = RelaData;
  using State = RelaState;
  using RelaEnds = Ends<RelaState>;
  const RelaCase c;
  const int64_t rows = sum_of(c.lengths), positions;
  const Integers offsets{offsets_of(c.lengths), c.is_int64};
  Tensor q, k, v, g, y, weight, bias, rotary;
  Tensor d_q, d_k, d_v, d_g, d_y, d_weight, d_bias, sums;

  RelaRun(const RelaCase& c, const RelaData& data) : c(c), positions(data.positions) {
    const int64_t d = c.width();
    if (c.strided) {  // q and k are halves of one matrix, and so are their gradients
      const Tensor qk(c.type, rows, 2 * d), d_qk(c.type, rows, 2 * d);
      q = qk.columns(0, d), k = qk.columns(d, 2 * d);
      d_q = d_qk.columns(0, d), d_k = d_qk.columns(d, 2 * d);
    } else {
      q = matrix(1), k = matrix(2), d_q = matrix(1), d_k = matrix(2);
    }
    v = matrix(3), y = matrix(4), d_v = matrix(3), d_y = matrix(2);
    q.set(data.q), k.set(data.k), v.set(data.v), d_y.set(data.d_y);
    if (c.gate) g = matrix(1), d_g = matrix(2), g.set(data.g);
    if (c.rotary) rotary = Tensor(DType::kFloat32, positions, d), rotary.set(data.rotary);
    if (c.saves) sums = RelaState(c).kv_state;
    if (c.kernel_size == 0) return;
    weight = Tensor(DType::kFloat32, d, c.kernel_size), d_weight = Tensor(DType::kFloat32, d, c.kernel_size);
    bias = Tensor(DType::kFloat32, 1, d), d_bias = Tensor(DType::kFloat32, 1, d);
    weight.set(data.weight), bias.set(data.bias);
  }

  Tensor matrix(int64_t more) const { return Tensor(c.type, rows, c.width(), c.stride(more), c.sparse); }
  RelaEnds ends(const RelaData&) const { return {}; }
  RelaEnds chunk_ends(const RelaData&, int chunk) const {
    RelaEnds ends;
    ends.final = RelaState(c);
    if (chunk > 0) ends.d_initial = RelaState(c);
    return ends;
  }

  cuda::GatedRelaParams params(const RelaEnds& ends) const {
    cuda::GatedRelaParams p;
    p.dtype = c.type;
    p.sequences = {offsets.memory.data, c.is_int64, c.batch(), rows, 0};
    if (c.bounded)
      for (int64_t n : c.lengths) p.sequences.max_length = std::max(p.sequences.max_length, n);
    p.num_heads = c.heads, p.head_dim = c.head_dim, p.kernel_size = c.kernel_size, p.causal = c.causal;
    p.eps = static_cast<float>(c.eps);
    p.q = q.rows(), p.k = k.rows(), p.v = v.rows(), p.g = g.rows();
    p.rotary = rotary.as<const float>(), p.rotary_positions = c.rotary ? positions : 0;
    p.conv_weight = weight.as<const float>(), p.conv_bias = bias.as<const float>();
    p.initial_kv_state = ends.initial.kv_state.as<const float>(), p.initial_history = ends.initial.history.data();
    p.initial_position = ends.initial.positions();
    p.segment_rows = c.segment_rows;
    return p;
  }

  void forward(const RelaEnds& ends) const {
    auto p = params(ends);
    p.y = y.rows();
    p.final_kv_state = (c.saves ? sums : ends.final.kv_state).as<float>(), p.final_history = ends.final.history.data();
    p.final_position = ends.final.positions();
    const Memory workspace(cuda::gated_rela_forward_workspace(p));
    p.workspace = workspace.data;
    expect_success(cuda::gated_rela_forward(p, nullptr));
    expect_untouched_gaps({{"y", y}});
  }

  void backward(const RelaEnds& ends) const {
    auto p = params(ends);
    p.saved_kv_state = sums.as<const float>();
    p.d_y = d_y.rows(), p.d_q = d_q.rows(), p.d_k = d_k.rows(), p.d_v = d_v.rows(), p.d_g = d_g.rows();
    p.d_conv_weight = d_weight.as<float>(), p.d_conv_bias = d_bias.as<float>();
    p.d_final_kv_state = ends.d_final.kv_state.as<const float>(), p.d_final_history = ends.d_final.history.data();
    p.d_initial_kv_state = ends.d_initial.kv_state.as<float>();
    p.d_initial_history = ends.d_initial.history.data();
    const Memory workspace(cuda::gated_rela_backward_workspace(p));
    p.workspace = workspace.data;
    expect_success(cuda::gated_rela_backward(p, nullptr));
    expect_untouched_gaps({{"d_v", d_v}, {"d_g", d_g}});
    if (!c.strided) expect_untouched_gaps({{"d_q", d_q}, {"d_k", d_k}});
  }

  NamedTensors results(const RelaEnds& ends) const {
    NamedTensors out = {{"y", y}, {"d_q", d_q}, {"d_k", d_k}, {"d_v", d_v}};
    if (c.gate) out.push_back({"d_g", d_g});
    if (c.kernel_size) out.push_back({"d_weight", d_weight}), out.push_back({"d_bias", d_bias});
    if (ends.final.present()) out.push_back({"final_history", ends.final.history});
    return out;
  }
  static bool sums_chunks(const RelaCase&, const std::string& name) { return name == "d_weight" || name == "d_bias"; }

  // The gradients of q and k are differences of terms as large as d_v; they nearly cancel for queries with few keys.
  static double scale(const RelaCase& c, const Named& want, const std::string& name) {
    const bool cancels = (name == "d_q" || name == "d_k") && sum_of(c.lengths) < 50;
    return cancels ? 0.04 * largest_of(want[3].second) : 0;
  }

  // Expects the last chunk's final state to equal the final state of a whole call, and positions to count rows.
  static void check_chunk_ends(const RelaCase& c, const RelaData& data, const Chunks& chunks,
                               const std::vector<RelaEnds>& ends) {
    for (int chunk = 0; chunk < kChunks; ++chunk)
      expect(ends[chunk].final.position->values() == chunks.ends(chunk), "a final position is wrong");
    RelaEnds whole;
    whole.final = RelaState(c);
    RelaRun(c, data).forward(whole);
    expect_close("final_kv_state", ends.back().final.kv_state.values(), whole.final.kv_state.values(),
                 c.tolerance("final_kv_state"));
    expect(ends.back().final.history.bytes() == whole.final.history.bytes(),
           "final_history is not that of a whole call");
  }

  static Named reference(const RelaCase& c, const RelaData& data) {
    const int64_t d = c.width(), n = sum_of(c.lengths) * d;
    const Lengths offsets = offsets_of(c.lengths);
    cpu::GatedRelaParams<double> p;
    p.groups = cpu::Groups::of(c.batch(), d * c.kernel_size);
    p.max_seqlen = data.positions;
    p.num_heads = c.heads, p.head_dim = c.head_dim, p.kernel_size = c.kernel_size, p.causal = c.causal;
    p.eps = static_cast<float>(c.eps);
    p.cu_seqlens = offsets.data();
    p.q = {data.q.data(), d}, p.k = {data.k.data(), d}, p.v = {data.v.data(), d}, p.d_y = {data.d_y.data(), d};
    if (c.gate) p.g = {data.g.data(), d};
    if (c.rotary) p.rotary = data.rotary.data();
    if (c.kernel_size) p.conv_weight = data.weight.data(), p.conv_bias = data.bias.data();
    Named out;
    for (const char* name : {"y", "d_q", "d_k", "d_v", "d_g"})
      if (c.gate || std::string(name) != "d_g") out.push_back({name, Doubles(n)});
    p.y = {out[0].second.data(), d};
    p.d_q = {out[1].second.data(), d}, p.d_k = {out[2].second.data(), d}, p.d_v = {out[3].second.data(), d};
    if (c.gate) p.d_g = {out[4].second.data(), d};
    Doubles weight_partials(p.groups.count * d * c.kernel_size), bias_partials(c.kernel_size ? p.groups.count * d : 0);
    p.d_conv_weight = weight_partials.data(), p.d_conv_bias = bias_partials.data();
    run_on_cpu(cpu::gated_rela_kernels<double>(), p);
    if (c.kernel_size) {
      out.push_back({"d_weight", sum_of_partials(weight_partials, d * c.kernel_size)});
      out.push_back({"d_bias", sum_of_partials(bias_partials, d)});
    }
    out.push_back({"final_history", last_rows(data.v, d, c.lengths, std::max(c.kernel_size - 1, 0))});
    return out;
  }
};

}  // namespace recgrela::tests
