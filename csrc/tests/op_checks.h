// Checks that the tests of all operators share.
//
// A Run holds the tensors of one call. It derives from RunDefaults and has
//   Case, Data, State             options; random inputs, made from a Case; a state of the sequences
//   Run(case, data)
//   reference(case, data)         static: expected results in float64, in the order of results()
//   ends(data)                    states before and after the sequences of a whole call
//   chunk_ends(data, chunk)       the same for a chunk
//   forward(ends), backward(ends)
//   results(ends)                 all results; may leave out the last ones of the reference
//   sums_chunks(case, name)       static: whether a result is the sum of the chunks' results, not their rows
// Case has tolerance(name), and Data has chunk(case, chunks, chunk): the inputs of a chunk.
#pragma once

#include <memory>
#include <vector>

#include "tests/chunks.h"

namespace recgrela::tests {

struct RunDefaults {
  // The least magnitude to which the tolerance of a result is relative.
  template <typename Case>
  static double scale(const Case&, const Named&, const std::string&) {
    return 0;
  }
  // Checks the states that chunks pass on, beyond the results.
  template <typename Case, typename Data, typename State>
  static void check_chunk_ends(const Case&, const Data&, const Chunks&, const std::vector<Ends<State>>&) {}
};

template <typename Run>
NamedTensors run_all(const typename Run::Case& c, const typename Run::Data& data) {
  const Run run(c, data);
  const auto ends = run.ends(data);
  run.forward(ends), run.backward(ends);
  return run.results(ends);
}

// Expects the results of the reference.
template <typename Run>
void check(const typename Run::Case& c) {
  const typename Run::Data data(c);
  const Named want = Run::reference(c, data);
  const NamedTensors results = run_all<Run>(c, data);
  for (size_t i = 0; i < results.size(); ++i) {
    const std::string& name = results[i].first;
    expect(name == want.at(i).first, name + " is not " + want.at(i).first);
    expect_close(name, results[i].second.values(), want[i].second, c.tolerance(name), Run::scale(c, want, name));
  }
}

template <typename Run>
void check_one_result(const typename Run::Case& c) {
  const typename Run::Data data(c);
  expect_one_result([&] { return run_all<Run>(c, data); });
}

// Expects the results of the reference from chunks that pass on their states.
template <typename Run>
void check_chunks(const typename Run::Case& c, uint64_t seed) {
  const typename Run::Data data(c);
  const Chunks chunks(c.lengths, seed);
  std::vector<std::unique_ptr<Run>> runs;
  std::vector<Ends<typename Run::State>> ends;
  for (int chunk = 0; chunk < kChunks; ++chunk) {
    typename Run::Case part = c;
    part.lengths = chunks.lengths(chunk);
    runs.push_back(std::make_unique<Run>(part, data.chunk(c, chunks, chunk)));
    ends.push_back(runs[chunk]->chunk_ends(data, chunk));
  }
  link(ends);
  for (int chunk = 0; chunk < kChunks; ++chunk) runs[chunk]->forward(ends[chunk]);
  for (int chunk = kChunks - 1; chunk >= 0; --chunk) runs[chunk]->backward(ends[chunk]);
  std::vector<NamedTensors> results;
  for (int chunk = 0; chunk < kChunks; ++chunk) results.push_back(runs[chunk]->results(ends[chunk]));
  const Named want = Run::reference(c, data);
  for (size_t i = 0; i < want.size(); ++i) {
    const std::string& name = want[i].first;
    std::vector<Doubles> values;
    for (const NamedTensors& tensors : results) {
      expect(tensors.at(i).first == name, tensors[i].first + " is not " + name);
      values.push_back(tensors[i].second.values());
    }
    const bool is_final = name.rfind("final", 0) == 0, is_initial = name.rfind("d_initial", 0) == 0;
    const int64_t columns = Run::sums_chunks(c, name) ? 0 : results[0][i].second.num_columns();
    const Doubles got = is_final ? values.back() : is_initial ? values.front() : combine(chunks, values, columns);
    expect_close(name, got, want[i].second, 2 * c.tolerance(name), Run::scale(c, want, name));
  }
  Run::check_chunk_ends(c, data, chunks, ends);
}

}  // namespace recgrela::tests
