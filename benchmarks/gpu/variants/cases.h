// Sizes at which the variants of each operator are timed, with their operands on the device.
#pragma once

#include <cmath>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "device.h"
#include "ops.h"

namespace recgrela::variants {

using cuda::DType;
using cuda::RowMatrix;

// A size of a call.
struct Case {
  std::string name;  // of the size, as in tools/instructions
  DType dtype;
  int64_t batch, length, width;
  int size = 0;       // head width, states of a channel, or kernel size
  bool flag = false;  // gated_rela: causal; linear_scan: complex numbers with constant coefficients

  int64_t rows() const { return batch * length; }
};

inline const char* name_of(DType type) {
  return type == DType::kFloat32 ? "float32" : type == DType::kFloat16 ? "float16" : "bfloat16";
}

// Normally distributed numbers that repeat after a prime number of elements.
inline std::vector<float> numbers(uint32_t seed, float scale) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.f, scale);
  std::vector<float> values(65521);
  for (float& x : values) x = normal(random);
  return values;
}

inline uint16_t to_half(float x, DType type) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if (type == DType::kBFloat16) return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
  const int exponent = static_cast<int>(bits >> 23 & 0xff) - 112;
  if (exponent <= 0) return static_cast<uint16_t>(bits >> 16 & 0x8000);  // magnitudes below 2^-14 become zero
  const uint32_t mantissa = bits & 0x7fffff;
  return static_cast<uint16_t>((bits >> 16 & 0x8000) | (static_cast<uint32_t>(exponent) << 10 | mantissa >> 13));
}
inline float from_half(uint16_t x, DType type) {
  uint32_t bits = static_cast<uint32_t>(x) << 16;
  if (type == DType::kFloat16) {
    const int exponent = x >> 10 & 0x1f;
    if (exponent == 0) return std::ldexp(static_cast<float>(x & 0x3ff), -24) * (x & 0x8000 ? -1.f : 1.f);
    const uint32_t wide = exponent == 31 ? 255u : static_cast<uint32_t>(exponent + 112);
    bits = (static_cast<uint32_t>(x) & 0x8000) << 16 | wide << 23 | (static_cast<uint32_t>(x) & 0x3ff) << 13;
  }
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

// Operands and results of a call.
class Tensors {
 public:
  // A tensor of `count` numbers from a distribution.
  Memory input(DType type, int64_t count, float scale, const std::function<float(float)>& map = nullptr) {
    std::vector<float> values = numbers(++seed_, scale);
    if (map)
      for (float& x : values) x = map(x);
    std::vector<unsigned char> bytes;
    for (float x : values) {
      const uint16_t half = to_half(x, type);
      const auto* from = type == DType::kFloat32 ? reinterpret_cast<unsigned char*>(&x)
                                                 : reinterpret_cast<const unsigned char*>(&half);
      bytes.insert(bytes.end(), from, from + cuda::size_of(type));
    }
    const Memory memory(count * cuda::size_of(type));
    for (size_t at = 0; at < memory.bytes;) {  // the copied part doubles
      const size_t size = std::min(at ? at : bytes.size(), memory.bytes - at);
      copy(memory.as<char>() + at, at ? memory.data() : bytes.data(), size);
      at += size;
    }
    return keep(memory);
  }
  // A result, by whose values variants are compared.
  Memory output(DType type, int64_t count, const std::string& name) {
    const Memory memory(count * cuda::size_of(type));
    results.push_back({name, type, memory});
    return memory;
  }
  Memory scratch(size_t bytes) { return keep(Memory(bytes)); }
  Memory offsets(const Case& c) {
    std::vector<int64_t> values;
    for (int64_t b = 0; b <= c.batch; ++b) values.push_back(b * c.length);
    const Memory memory(values.size() * sizeof(int64_t));
    copy(memory.data(), values.data(), memory.bytes);
    return keep(memory);
  }
  // Makes every element of the results NaN.
  void clear() const {
    for (const Result& result : results) fill(result.memory.data(), 0xff, result.memory.bytes);
  }
  std::vector<std::vector<float>> values() const {
    std::vector<std::vector<float>> all;
    for (const Result& result : results) {
      const size_t count = result.memory.bytes / cuda::size_of(result.type);
      std::vector<float> numbers(count);
      if (result.type == DType::kFloat32) {
        copy(numbers.data(), result.memory.data(), result.memory.bytes);
      } else {
        std::vector<uint16_t> halves(count);
        copy(halves.data(), result.memory.data(), result.memory.bytes);
        for (size_t i = 0; i < count; ++i) numbers[i] = from_half(halves[i], result.type);
      }
      all.push_back(std::move(numbers));
    }
    return all;
  }

  struct Result {
    std::string name;
    DType type;
    Memory memory;
  };
  std::vector<Result> results;

 private:
  Memory keep(const Memory& memory) {
    kept_.push_back(memory);
    return memory;
  }
  uint32_t seed_ = 0;
  std::vector<Memory> kept_;
};

// The parameters of a forward and a backward.
template <typename Op>
struct Call {
  typename Op::Params forward, backward;
};

inline cuda::Sequences sequences_of(const Case& c, Tensors& t) {
  return {t.offsets(c).data(), true, c.batch, c.rows(), c.length};
}

inline Call<gated_rela> make_call(gated_rela, const Case& c, Tensors& t) {
  const int64_t n = c.rows() * c.width, heads = c.width / c.size;
  auto rows = [&](const Memory& memory) { return RowMatrix{memory.data(), c.width}; };
  Call<gated_rela> call;
  auto& p = call.forward;
  p.dtype = c.dtype, p.sequences = sequences_of(c, t), p.causal = c.flag, p.eps = 1e-6f;
  p.num_heads = static_cast<int>(heads), p.head_dim = c.size, p.kernel_size = 4;
  p.q = rows(t.input(c.dtype, n, 1.f)), p.k = rows(t.input(c.dtype, n, 1.f)), p.v = rows(t.input(c.dtype, n, 1.f));
  p.g = rows(t.input(c.dtype, n, 1.f));
  // Any angles serve: the kernels only multiply by the cosines and sines.
  p.rotary = t.input(DType::kFloat32, c.length * c.width, 0.7f).as<float>(), p.rotary_positions = c.length;
  p.conv_weight = t.input(DType::kFloat32, c.width * 4, 0.5f).as<float>();
  p.conv_bias = t.input(DType::kFloat32, c.width, 0.5f).as<float>();
  call.backward = p;
  p.y = rows(t.output(c.dtype, n, "y"));
  auto& b = call.backward;
  if (!c.flag) {
    p.final_kv_state = t.output(DType::kFloat32, c.batch * c.width * (c.size + 1), "final_kv_state").as<float>();
    b.saved_kv_state = p.final_kv_state;
  }
  b.d_y = rows(t.input(c.dtype, n, 1.f));
  b.d_q = rows(t.output(c.dtype, n, "d_q")), b.d_k = rows(t.output(c.dtype, n, "d_k"));
  b.d_v = rows(t.output(c.dtype, n, "d_v")), b.d_g = rows(t.output(c.dtype, n, "d_g"));
  b.d_conv_weight = t.output(DType::kFloat32, c.width * 4, "d_conv_weight").as<float>();
  b.d_conv_bias = t.output(DType::kFloat32, c.width, "d_conv_bias").as<float>();
  return call;
}

inline Call<selective_scan> make_call(selective_scan, const Case& c, Tensors& t) {
  const int64_t n = c.rows() * c.width, states = c.size;
  auto rows = [&](const Memory& memory) { return RowMatrix{memory.data(), c.width}; };
  auto narrow = [&](const Memory& memory) { return RowMatrix{memory.data(), states}; };
  Call<selective_scan> call;
  auto& p = call.forward;
  p.dtype = c.dtype, p.sequences = sequences_of(c, t), p.channels = c.width, p.num_states = c.size;
  p.u = rows(t.input(c.dtype, n, 1.f)), p.delta = rows(t.input(c.dtype, n, 1.f)), p.z = rows(t.input(c.dtype, n, 1.f));
  p.B = narrow(t.input(c.dtype, c.rows() * states, 1.f)), p.C = narrow(t.input(c.dtype, c.rows() * states, 1.f));
  p.A = t.input(DType::kFloat32, c.width * states, 0.7f, [](float x) { return -std::fabs(x); }).as<float>();
  p.D = t.input(DType::kFloat32, c.width, 1.f).as<float>();
  p.delta_bias = t.input(DType::kFloat32, c.width, 1.f).as<float>();
  const int64_t checkpoints = c.rows() / p.kCheckpointRows + c.batch;
  p.checkpoints = t.scratch(checkpoints * c.width * states * sizeof(float)).as<float>();
  call.backward = p;
  p.y = rows(t.output(c.dtype, n, "y"));
  auto& b = call.backward;
  b.d_y = rows(t.input(c.dtype, n, 1.f));
  b.d_u = rows(t.output(c.dtype, n, "d_u")), b.d_delta = rows(t.output(c.dtype, n, "d_delta"));
  b.d_z = rows(t.output(c.dtype, n, "d_z"));
  b.d_B = narrow(t.output(c.dtype, c.rows() * states, "d_B"));
  b.d_C = narrow(t.output(c.dtype, c.rows() * states, "d_C"));
  b.d_A = t.output(DType::kFloat32, c.width * states, "d_A").as<float>();
  b.d_D = t.output(DType::kFloat32, c.width, "d_D").as<float>();
  b.d_delta_bias = t.output(DType::kFloat32, c.width, "d_delta_bias").as<float>();
  return call;
}

inline Call<linear_scan> make_call(linear_scan, const Case& c, Tensors& t) {
  const int64_t parts = c.flag ? 2 : 1, n = c.rows() * c.width * parts;
  auto rows = [&](const Memory& memory) { return RowMatrix{memory.data(), c.width}; };
  Call<linear_scan> call;
  auto& p = call.forward;
  p.dtype = c.dtype, p.complex = c.flag, p.per_step = !c.flag, p.sequences = sequences_of(c, t);
  p.channels = c.width;
  const int64_t coefficients = c.flag ? c.width * parts : n;
  const auto below_one = [](float x) { return 0.69f * std::tanh(x); };  // magnitudes of complex numbers too
  p.a = rows(t.input(DType::kFloat32, coefficients, 1.f, below_one));
  p.h = rows(t.output(c.dtype, n, "h"));
  call.backward = p;
  p.x = rows(t.input(c.dtype, n, 1.f));
  auto& b = call.backward;
  b.d_h = rows(t.input(c.dtype, n, 1.f));
  b.d_x = rows(t.output(c.dtype, n, "d_x")), b.d_a = rows(t.output(DType::kFloat32, coefficients, "d_a"));
  return call;
}

inline Call<causal_conv1d> make_call(causal_conv1d, const Case& c, Tensors& t) {
  const int64_t n = c.rows() * c.width;
  auto rows = [&](const Memory& memory) { return RowMatrix{memory.data(), c.width}; };
  Call<causal_conv1d> call;
  auto& p = call.forward;
  p.dtype = c.dtype, p.sequences = sequences_of(c, t), p.channels = c.width, p.kernel_size = c.size, p.silu = true;
  p.x = rows(t.input(c.dtype, n, 1.f));
  p.weight = t.input(DType::kFloat32, c.width * c.size, 0.5f).as<float>();
  p.bias = t.input(DType::kFloat32, c.width, 0.5f).as<float>();
  call.backward = p;
  p.y = rows(t.output(c.dtype, n, "y"));
  auto& b = call.backward;
  b.d_y = rows(t.input(c.dtype, n, 1.f)), b.d_x = rows(t.output(c.dtype, n, "d_x"));
  b.d_weight = t.output(DType::kFloat32, c.width * c.size, "d_weight").as<float>();
  b.d_bias = t.output(DType::kFloat32, c.width, "d_bias").as<float>();
  return call;
}

inline std::vector<Case> cases_of(gated_rela, DType type) {
  std::vector<Case> cases = {{"head 16, causal", type, 2048, 200, 64, 16, true},
                             {"head 16, bidirectional", type, 2048, 200, 64, 16, false}};
  for (int head : {32, 64, 128})
    cases.push_back({"head " + std::to_string(head) + ", causal", type, 1024, 200, 128, head, true});
  return cases;
}
inline std::vector<Case> cases_of(selective_scan, DType type) {
  return {{"N 16", type, 2048, 200, 128, 16}, {"N 32", type, 2048, 200, 128, 32}};
}
inline std::vector<Case> cases_of(linear_scan, DType type) {
  std::vector<Case> cases = {{"real, each step", type, 2048, 200, 64}};
  if (type == DType::kFloat32) cases.push_back({"complex, constant", type, 2048, 200, 64, 0, true});
  return cases;
}
inline std::vector<Case> cases_of(causal_conv1d, DType type) { return {{"K 4", type, 2048, 200, 64, 4}}; }

}  // namespace recgrela::variants
