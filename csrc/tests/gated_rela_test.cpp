// gated_rela against the CPU kernels in float64.
#include <optional>

#include "tests/gated_rela_run.h"

namespace recgrela::tests {
namespace {

// A forward over some sequences. Tests set invalid parameters before they call it.
struct Refusal {
  RelaCase c;
  RelaRun run;
  cuda::GatedRelaParams p = run.params({});
  Memory workspace;
  std::optional<Memory> table;

  explicit Refusal(const RelaCase& c) : c(c), run(c, RelaData(c)), workspace(cuda::gated_rela_forward_workspace(p)) {
    p.y = run.y.rows(), p.workspace = workspace.data;
  }
  // Replaces the rotary table by one of this size.
  void set_positions(int64_t positions) {
    table.emplace(sizeof(float) * positions * c.heads * c.head_dim);
    p.rotary = reinterpret_cast<const float*>(table->data), p.rotary_positions = positions;
  }
  cudaError_t forward() const { return cuda::gated_rela_forward(p, nullptr); }
};

RelaCase refusal_case(bool is_int64) {
  RelaCase c;
  c.lengths = {3, 4}, c.is_int64 = is_int64;
  return c;
}

void check_refusals() {
  Refusal refusal(refusal_case(true));
  refusal.set_positions(3);
  expect_fault([&] { refusal.forward(); }, "a sequence is longer than the rotary table");
  refusal.set_positions(4);
  refusal.p.sequences.max_length = 3;
  expect_fault([&] { refusal.forward(); }, "a sequence is longer than max_length");
  const Integers negative({0, -1}, true);
  refusal.p.sequences.max_length = 0;
  refusal.p.initial_position = reinterpret_cast<const int64_t*>(negative.memory.data);
  expect_fault([&] { refusal.forward(); }, "an initial position must not be negative");
  refusal.p.initial_position = nullptr, refusal.p.head_dim = 24;
  expect(refusal.forward() == cudaErrorInvalidValue, "heads of 24 channels are not refused");
}

// Sequences that are cut: kernels use the offsets before the one that checks them.
void check_refusals_of_segments(bool causal) {
  RelaCase c;
  c.lengths = {40, 30}, c.segment_rows = 16, c.causal = causal;
  Refusal refusal(c);
  refusal.set_positions(39);
  expect_fault([&] { refusal.forward(); }, "a sequence is longer than the rotary table");
  refusal.set_positions(1000);
  auto refuses = [&](const Lengths& offsets, const char* message) {
    const Integers malformed(offsets, true);
    refusal.p.sequences.offsets = malformed.memory.data;
    expect_fault([&] { refusal.forward(); }, message);
  };
  refuses({60, 65, 70}, "cu_seqlens must start at 0");
  refuses({0, 70, 71}, "cu_seqlens must end at the number of rows");
  refuses({0, -5, 70}, "cu_seqlens must not decrease");
  refuses({0, 1000, 70}, "cu_seqlens must not decrease");
}

void add_cases(Cases& cases) {
  const DType types[] = {DType::kFloat32, DType::kFloat16, DType::kBFloat16};
  const Lengths packs[] = {{1},   {2},   {15}, {16},  {17}, {199}, {3, 0, 40, 1, 17, 0, 64}, {0, 1, 2, 3, 0, 1, 1, 33},
                           {200}, {257}, {},   {0, 0}};
  auto draw = [&](DType type, int head_dim, bool causal, const Lengths& lengths) {
    RelaCase c;
    c.type = type, c.head_dim = head_dim, c.causal = causal, c.lengths = lengths;
    c.heads = head_dim <= 16 ? cases.one_of(1, 3, 4, 5) : head_dim < 128 ? cases.one_of(1, 2) : 1;
    c.kernel_size = cases.one_of(0, 2, 3, 4, 4);
    c.rotary = cases.one_of(0, 1, 1), c.gate = cases.one_of(0, 1, 1), c.is_int64 = cases.one_of(0, 1),
    c.strided = cases.one_of(0, 1);
    c.bounded = cases.one_of(0, 1);
    c.eps = cases.one_of(1e-6, 0.1);
    c.segment_rows = cases.one_of(0, 0, 16, 32, 48);
    return c;
  };
  // Types, head sizes and forms take the packs in turn, with random options.
  size_t next = 0;
  for (DType type : types)
    for (int head_dim : {8, 16, 32, 64, 128})
      for (bool causal : {true, false})
        for (int i = 0; i < 5; ++i) {
          RelaCase c = draw(type, head_dim, causal, packs[next++ % std::size(packs)]);
          c.saves = !causal && i % 2;
          cases.add(c.name(), [c] { check<RelaRun>(c); });
        }
  // Lengths around the ends of chunks of 16 rows and of steps of 32, with all options.
  for (DType type : types)
    for (int head_dim : {8, 16, 32})
      for (bool causal : {true, false}) {
        RelaCase c;
        c.type = type, c.head_dim = head_dim, c.causal = causal, c.heads = 1, c.lengths = {31, 32, 33, 47, 64, 65, 97};
        cases.add(c.name() + "/steps", [c] { check<RelaRun>(c); });
      }
  // No option, and each option alone.
  for (DType type : types)
    for (bool causal : {true, false})
      for (int option = 0; option < 5; ++option) {
        RelaCase c;
        c.type = type, c.causal = causal, c.lengths = {33, 2, 18};
        c.rotary = option == 1, c.gate = option == 2, c.kernel_size = option == 3 ? 4 : 0;
        c.segment_rows = option == 4 ? 16 : 0;
        cases.add(c.name() + "/alone", [c] { check<RelaRun>(c); });
      }
  for (DType type : types)
    for (int head_dim : {8, 16, 32, 64, 128})
      for (int i = 0; i < 2; ++i) {
        RelaCase c =
            draw(type, head_dim, true, i ? Lengths{2, 0, 40, 1, 17, 3, 5, 70} : Lengths{7, 1, 1, 2, 4, 3, 0, 6});
        if (i) c.segment_rows = cases.one_of(16, 32);
        const uint64_t seed = cases.random();
        cases.add(c.name() + "/chunks", [c, seed] { check_chunks<RelaRun>(c, seed); });
      }
  for (DType type : types)
    for (int head_dim : {16, 64})
      for (bool causal : {true, false}) {
        RelaCase c = draw(type, head_dim, causal, {3, 0, 40, 1, 17});
        c.segment_rows = causal == (head_dim == 16) ? 16 : 0, c.kernel_size = 4, c.saves = !causal;
        cases.add(c.name() + "/schedules", [c] { check_one_result<RelaRun>(c); });
      }
  // Wide heads: full chunks of up to 64 rows, and one with a tail.
  for (DType type : types)
    for (int head_dim : {64, 128})
      for (bool causal : {true, false}) {
        RelaCase c = draw(type, head_dim, causal, type == DType::kFloat32 ? Lengths{33, 1, 70} : Lengths{65, 1, 134});
        c.heads = 1, c.kernel_size = head_dim == 64 || causal ? 4 : 1, c.segment_rows = causal ? 0 : 64;
        cases.add(c.name() + "/wide", [c] { check<RelaRun>(c); });
        if (head_dim == 64) cases.add(c.name() + "/wide/schedules", [c] { check_one_result<RelaRun>(c); });
      }
  // Wide heads in other orders of threads: one and two row tiles a chunk, and segments that end within a chunk.
  for (DType type : {DType::kFloat32, DType::kBFloat16})
    for (int head_dim : {64, 128}) {
      RelaCase c = draw(type, head_dim, true, {33, 1, 17});
      c.heads = 1, c.kernel_size = 4, c.segment_rows = head_dim == 64 ? 16 : 0;
      cases.add(c.name() + "/wide/schedules", [c] { check_one_result<RelaRun>(c); });
    }
  // More units of work (heads of sequences) than teams of the backward.
  auto add_units = [&](DType type, bool causal, int heads, int head_dim) {
    RelaCase c;
    c.type = type, c.causal = causal, c.heads = heads, c.head_dim = head_dim;
    c.lengths = {1, 40, 3, 2, 17, 33, 0, 5, 8, 21, 3};
    c.segment_rows = causal && type == DType::kFloat16 ? 16 : 0;
    cases.add(c.name() + "/launches", [c]() mutable {
      const Lengths lengths = c.lengths;  // enough for 4 multiprocessors
      for (int n = 4; n < multiprocessors(); n += 4) c.lengths.insert(c.lengths.end(), lengths.begin(), lengths.end());
      check<RelaRun>(c);
    });
  };
  for (bool causal : {true, false}) {
    for (DType type : types) add_units(type, causal, 5, 16);
    add_units(DType::kBFloat16, causal, 1, 128);
  }
  for (DType type : types)
    for (bool causal : {true, false}) {
      RelaCase c;
      c.type = type, c.causal = causal, c.lengths = {1, 40}, c.sparse = true;
      cases.add(c.name(), [c] { check<RelaRun>(c); });
    }
  add_refusals(cases, "gated_rela", [](const void* offsets, bool is_int64) {
    Refusal refusal(refusal_case(is_int64));
    refusal.p.sequences.offsets = offsets;
    refusal.set_positions(8);
    refusal.forward();
  });
  cases.add("gated_rela/refusals", check_refusals);
  for (bool causal : {true, false})
    cases.add(std::string("gated_rela/refusals/segments/") + (causal ? "causal" : "bidirectional"),
              [causal] { check_refusals_of_segments(causal); });
}

const Registration registration(11, add_cases);

}  // namespace
}  // namespace recgrela::tests
