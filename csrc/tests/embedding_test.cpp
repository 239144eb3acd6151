// embedding against loops in double precision.
#include <cmath>

#include "kernels/embedding/params.h"
#include "tests/dropout_reference.h"
#include "tests/op_checks.h"

namespace recgrela::tests {
namespace {

enum class Items { kRandom, kEqual, kDifferent, kPopular, kFew };
const char* const kItemNames[] = {"random", "equal", "different", "popular", "few"};

struct EmbeddingCase {
  int64_t rows = 0, n_items = 0;
  int width = 64;
  Items kind = Items::kRandom;
  int parameters = 2;  // of the LayerNorm
  bool dropout = true, strided = false;
  int64_t padding_idx = -1;
  int piece = 0, sort_chunk = 0, digit_bits = 0;

  std::string name() const {
    return "embedding/T=" + std::to_string(rows) + "/items=" + std::to_string(n_items) + "/D=" + std::to_string(width) +
           "/" + kItemNames[static_cast<int>(kind)] +
           (parameters == 0   ? "/plain"
            : parameters == 1 ? "/weight"
                              : "/norm") +
           (dropout ? "/dropout" : "") + (strided ? "/strided" : "") +
           (padding_idx >= 0 ? "/padding=" + std::to_string(padding_idx) : "") +
           (piece ? "/piece=" + std::to_string(piece) : "") +
           (sort_chunk ? "/chunk=" + std::to_string(sort_chunk) : "") +
           (digit_bits ? "/bits=" + std::to_string(digit_bits) : "");
  }
};

Lengths draw_items(const EmbeddingCase& c) {
  std::mt19937 random(7);
  Lengths items(c.rows);
  for (int64_t i = 0; i < c.rows; ++i) {
    const int64_t any = random() % c.n_items;
    switch (c.kind) {
      case Items::kRandom:
        items[i] = any;
        break;
      case Items::kEqual:
        items[i] = c.n_items / 2;
        break;
      case Items::kDifferent:
        items[i] = i * 7 % c.n_items;  // all different if there are enough items and their number is not divisible by 7
        break;
      case Items::kPopular:
        items[i] = random() % 4 ? 2 % c.n_items : any;
        break;
      case Items::kFew:
        items[i] = any % 3 * (c.n_items - 1) / 2;
        break;
    }
  }
  return items;
}

constexpr int64_t kSeed = 0x123456789abcdef;
constexpr float kEps = 1e-6f;

struct EmbeddingRun {
  const EmbeddingCase c;
  const Integers items, seed{{kSeed}, true};
  const DropoutReference dropout{0.25, kSeed};
  Tensor table, weight, bias, y, d_y, d_table, d_weight, d_bias;
  Doubles table_values, weight_values, bias_values, d_y_values;

  explicit EmbeddingRun(const EmbeddingCase& c) : c(c), items(draw_items(c), true) {
    auto make = [&](int64_t rows, uint64_t number, Doubles& values, int64_t stride = 0) {
      values = random_numbers(DType::kFloat32, rows * c.width, 1, number);
      Tensor tensor(DType::kFloat32, rows, c.width, stride);
      tensor.set(values);
      return tensor;
    };
    table = make(c.n_items, 1, table_values);
    d_y = make(c.rows, 2, d_y_values, c.strided ? c.width + 12 : 0);
    if (c.parameters > 0) weight = make(1, 3, weight_values), d_weight = Tensor(DType::kFloat32, 1, c.width);
    if (c.parameters > 1) bias = make(1, 4, bias_values), d_bias = Tensor(DType::kFloat32, 1, c.width);
    y = Tensor(DType::kFloat32, c.rows, c.width), d_table = Tensor(DType::kFloat32, c.n_items, c.width);
  }

  cuda::EmbeddingParams params() const {
    cuda::EmbeddingParams p;
    p.num_rows = c.rows, p.n_items = c.n_items, p.width = c.width, p.eps = kEps;
    if (c.dropout) p.dropout = dropout.params(reinterpret_cast<const int64_t*>(seed.memory.data));
    p.padding_idx = c.padding_idx;
    p.items = reinterpret_cast<const int64_t*>(items.memory.data);
    p.table = table.as<float>(), p.weight = weight.as<float>(), p.bias = bias.as<float>();
    p.piece = c.piece, p.sort_chunk = c.sort_chunk, p.digit_bits = c.digit_bits;
    return p;
  }

  void run() const {
    auto p = params();
    p.y = y.as<float>();
    expect_success(cuda::embedding_forward(p, nullptr));
    p = params();
    p.d_y = d_y.rows(), p.d_table = d_table.as<float>();
    p.d_weight = d_weight.as<float>(), p.d_bias = d_bias.as<float>();
    const Memory workspace(cuda::embedding_backward_workspace(p));
    p.workspace = workspace.data;
    expect_success(cuda::embedding_backward(p, nullptr));
  }

  NamedTensors results() const {
    NamedTensors out = {{"y", y}, {"d_table", d_table}};
    if (c.parameters > 0) out.push_back({"d_weight", d_weight});
    if (c.parameters > 1) out.push_back({"d_bias", d_bias});
    return out;
  }

  Named reference() const {
    const int64_t D = c.width;
    const Lengths ids = items.values();
    Doubles y(c.rows * D), d_table(c.n_items * D), d_weight(D), d_bias(D), x(D), d(D);
    for (int64_t row = 0; row < c.rows; ++row) {
      auto factor = [&](int64_t i) { return c.dropout ? dropout.factor(row * D + i) : 1; };
      const double* const d_y = &d_y_values[row * D];
      double mean = 0, variance = 0;
      for (int64_t i = 0; i < D; ++i) mean += (x[i] = table_values[ids[row] * D + i] * factor(i)) / D;
      for (int64_t i = 0; i < D; ++i) variance += (x[i] - mean) * (x[i] - mean) / D;
      const double reciprocal = 1 / std::sqrt(variance + kEps);
      double sum = 0, product = 0;
      for (int64_t i = 0; i < D; ++i) {
        d[i] = d_y[i];
        if (c.parameters > 0) {
          x[i] = (x[i] - mean) * reciprocal;
          d_weight[i] += d_y[i] * x[i], d_bias[i] += d_y[i];
          d[i] *= weight_values[i];
          sum += d[i] / D, product += d[i] * x[i] / D;
          y[row * D + i] = x[i] * weight_values[i] + (c.parameters > 1 ? bias_values[i] : 0);
        } else {
          y[row * D + i] = x[i];
        }
      }
      if (ids[row] == c.padding_idx) continue;
      for (int64_t i = 0; i < D; ++i) {
        if (c.parameters > 0) d[i] = reciprocal * (d[i] - sum - x[i] * product);
        d_table[ids[row] * D + i] += d[i] * factor(i);
      }
    }
    return {{"y", y}, {"d_table", d_table}, {"d_weight", d_weight}, {"d_bias", d_bias}};
  }
};

void check_embedding(const EmbeddingCase& c) {
  const EmbeddingRun run(c);
  run.run();
  const Named want = run.reference();
  const NamedTensors results = run.results();
  for (size_t i = 0; i < results.size(); ++i)
    expect_close(results[i].first, results[i].second.values(), want[i].second, 3e-6);
}

void add_cases(Cases& cases) {
  auto add = [&](const EmbeddingCase& c) { cases.add(c.name(), [c] { check_embedding(c); }); };
  auto draw = [&](int64_t rows, int64_t n_items, Items kind) {
    EmbeddingCase c;
    c.rows = rows, c.n_items = n_items, c.kind = kind;
    c.width = cases.one_of(16, 32, 48, 64);
    c.parameters = cases.one_of(0, 1, 2, 2), c.dropout = cases.one_of(0, 1), c.strided = cases.one_of(0, 1);
    c.padding_idx = cases.one_of<int64_t>(-1, 0, 2 % n_items);
    return c;
  };
  const Items kinds[] = {Items::kRandom, Items::kEqual, Items::kDifferent, Items::kPopular, Items::kFew};
  for (const Items kind : kinds)
    for (const int64_t rows : {0, 1, 2, 31, 129, 700}) {
      add(draw(rows, kind == Items::kDifferent ? rows + 2 : 40, kind));
      EmbeddingCase c = draw(rows, kind == Items::kDifferent ? 1000 : 5, kind);
      c.piece = 1 + static_cast<int>(cases.random() % 3), c.sort_chunk = 32;  // many blocks
      c.digit_bits = cases.one_of(1, 2, 5);
      add(c);
    }
  for (const int width : {16, 32, 48, 64, 80, 96, 112, 128, 144, 176, 192, 208, 240, 256})
    for (const int parameters : {0, 2}) {
      EmbeddingCase c = draw(45, 6, Items::kPopular);
      c.width = width, c.parameters = parameters, c.piece = 2, c.padding_idx = -1;
      add(c);
    }
  // Numbers of items around powers of 2, and catalogues with several digits
  for (const int64_t n_items : {1, 2, 31, 32, 33, 4096, 4097}) {
    EmbeddingCase c = draw(300, n_items, Items::kRandom);
    c.width = 16;
    add(c);
    c.sort_chunk = 32;
    add(c);
  }
  EmbeddingCase large = draw(9000, 60, Items::kRandom);  // sorted by several blocks
  large.width = 16;
  add(large);
  for (const Items kind : {Items::kPopular, Items::kRandom})
    for (const bool one_block : {false, true}) {
      EmbeddingCase c = draw(530, 9, kind);
      c.width = 64, c.parameters = 2, c.dropout = true, c.piece = 3, c.sort_chunk = one_block ? 0 : 32,
      c.digit_bits = 3;
      cases.add(c.name() + "/schedules", [c] {
        expect_one_result([&] {
          const EmbeddingRun run(c);
          run.run();
          return run.results();
        });
      });
    }
  for (const int64_t wrong : {-1, 40, 1 << 20})
    cases.add("embedding/refusals/item=" + std::to_string(wrong), [wrong] {
      EmbeddingCase c;
      c.rows = 5, c.n_items = 40;
      const EmbeddingRun run(c);
      const Integers items({3, wrong, 0, 1, 2}, true);
      auto p = run.params();
      p.items = reinterpret_cast<const int64_t*>(items.memory.data), p.y = run.y.as<float>();
      expect_fault([&] { cuda::embedding_forward(p, nullptr); }, "an item is not a row of the table");
    });
}

const Registration registration(17, add_cases);

}  // namespace
}  // namespace recgrela::tests
