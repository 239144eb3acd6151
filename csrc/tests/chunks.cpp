#include "tests/chunks.h"

#include <algorithm>
#include <iterator>
#include <random>

namespace recgrela::tests {

// Most cuts are near the ends of a sequence, since chunks shorter than a convolution are the most error-prone.
Chunks::Chunks(const Lengths& lengths, uint64_t seed) : lengths_(lengths), ends_(kChunks, lengths) {
  std::mt19937_64 source(seed);
  for (size_t s = 0; s < lengths.size(); ++s) {
    int64_t n = lengths[s];
    for (int chunk = kChunks - 2; chunk >= 0; --chunk) {
      const int64_t choices[] = {0, 1, 2, 3, n / 2, n - 2, n - 1, n, n / 3};
      ends_[chunk][s] = n = std::clamp<int64_t>(choices[source() % std::size(choices)], 0, n);
    }
  }
}

Lengths Chunks::lengths(int chunk) const {
  Lengths out = ends_[chunk];
  for (size_t s = 0; s < out.size() && chunk > 0; ++s) out[s] -= ends_[chunk - 1][s];
  return out;
}

Doubles Chunks::rows(const Doubles& matrix, int64_t columns, int chunk) const {
  Doubles out;
  int64_t row = 0;
  for (size_t s = 0; s < lengths_.size(); row += lengths_[s++]) {
    const int64_t begin = row + (chunk ? ends_[chunk - 1][s] : 0), end = row + ends_[chunk][s];
    out.insert(out.end(), matrix.begin() + begin * columns, matrix.begin() + end * columns);
  }
  return out;
}

Doubles Chunks::join(const std::vector<Doubles>& chunks, int64_t columns) const {
  Doubles out;
  std::vector<int64_t> next(chunks.size());
  for (size_t s = 0; s < lengths_.size(); ++s)
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      const auto from = chunks[chunk].begin() + next[chunk];
      const int64_t count = lengths(chunk)[s] * columns;
      out.insert(out.end(), from, from + count);
      next[chunk] += count;
    }
  return out;
}

Doubles combine(const Chunks& chunks, const std::vector<Doubles>& results, int64_t columns) {
  if (columns > 0) return chunks.join(results, columns);
  Doubles sum(results[0].size());
  for (const Doubles& result : results)
    for (size_t i = 0; i < sum.size(); ++i) sum[i] += result.at(i);
  return sum;
}

Doubles last_rows(const Doubles& matrix, int64_t columns, const Lengths& lengths, int64_t rows) {
  Doubles last;
  const Lengths offsets = offsets_of(lengths);
  for (size_t s = 0; s < lengths.size(); ++s)
    for (int64_t row = offsets[s + 1] - rows; row < offsets[s + 1]; ++row)
      for (int64_t i = 0; i < columns; ++i) last.push_back(row < offsets[s] ? 0 : matrix[row * columns + i]);
  return last;
}

}  // namespace recgrela::tests
