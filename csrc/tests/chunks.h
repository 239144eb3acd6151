// Sequences processed in chunks, with the state passed from each chunk to the next.
#pragma once

#include <vector>

#include "tests/case.h"

namespace recgrela::tests {

constexpr int kChunks = 3;

// Random cuts of sequences into kChunks chunks.
class Chunks {
 public:
  Chunks(const Lengths& lengths, uint64_t seed);

  Lengths lengths(int chunk) const;
  const Lengths& ends(int chunk) const { return ends_[chunk]; }  // rows of each sequence up to the end of a chunk
  // Rows of a chunk of a matrix with `columns` columns.
  Doubles rows(const Doubles& matrix, int64_t columns, int chunk) const;
  // Matrix of the rows of all chunks.
  Doubles join(const std::vector<Doubles>& chunks, int64_t columns) const;

 private:
  Lengths lengths_;
  std::vector<Lengths> ends_;  // by chunk and sequence
};

// States before and after the sequences of a call, and their gradients.
template <typename State>
struct Ends {
  State initial, final, d_initial, d_final;
};

// Makes the final state of each chunk the initial state of the next, and links their gradients in the same way.
template <typename State>
void link(std::vector<Ends<State>>& ends) {
  for (size_t chunk = 1; chunk < ends.size(); ++chunk) {
    ends[chunk].initial = ends[chunk - 1].final;
    ends[chunk - 1].d_final = ends[chunk].d_initial;
  }
}

// Results of one tensor from all chunks: rows to be joined, or (columns 0) terms to be summed.
Doubles combine(const Chunks& chunks, const std::vector<Doubles>& results, int64_t columns);

// Last `rows` rows of each sequence of a matrix, zeros where a sequence is shorter.
Doubles last_rows(const Doubles& matrix, int64_t columns, const Lengths& lengths, int64_t rows);

}  // namespace recgrela::tests
