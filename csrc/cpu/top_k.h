// Parameters and kernels of top_k on the CPU: the items with the highest scores, the inner products of queries with the
// rows of a table plus a bias.
#pragma once

#include <cstring>

#include "common.h"

namespace recgrela::cpu {

// Items are ordered by score, equal scores by smaller id first: the order of these keys, which all differ.
constexpr int64_t kLowBits = 0xffffffff;
inline int64_t top_k_key(float score, int64_t item) {
  int32_t bits;
  std::memcpy(&bits, &score, sizeof(bits));
  return static_cast<int64_t>(bits ^ ((bits >> 31) & 0x7fffffff)) * (kLowBits + 1) + (kLowBits - item);
}
inline int64_t item_of(int64_t key) { return kLowBits - (key & kLowBits); }
inline float score_of(int64_t key) {
  int32_t bits = static_cast<int32_t>(key >> 32);
  bits ^= (bits >> 31) & 0x7fffffff;
  float score;
  std::memcpy(&score, &bits, sizeof(score));
  return score;
}

// An item that a query has found: the key of a lower bound of its score, and an upper bound.
struct TopKFound {
  int64_t key;
  float upper;
};

struct TopKParams {
  static constexpr int64_t kBlockRows = 32, kGroupQueries = 16;
  // Bounds of a block of rows: maxima of |error of a row| / scale, |int8 row|, |row| and |bias|.
  static constexpr int64_t kRowError = 0, kCodeNorm = 1, kRowNorm = 2, kBias = 3, kBounds = 4;

  int64_t num_queries = 0, num_items = 0, dim = 0, k = 0;
  int64_t parts = 1;  // of the table, each searched on its own

  const float* queries = nullptr;  // [num_queries, dim]
  const float* weight = nullptr;   // [num_items, dim], row 0 is padding
  const float* bias = nullptr;     // [num_items] or null
  const float* bounds = nullptr;   // [blocks, kBounds]

  // Rows rounded to int8: row r of block b, about scales[r] * codes, is item order[32 b + r]. Null: the search reads
  // the float32 rows.
  const int8_t* codes = nullptr;   // [blocks, groups_of_dims, 32, 4]
  const float* scales = nullptr;   // [32 blocks]
  const float* biases = nullptr;   // [32 blocks] or null
  const int32_t* order = nullptr;  // [32 blocks], 0 after the last row

  const bool* allowed = nullptr;         // [num_items] or null
  const int64_t* excluded = nullptr;     // items that queries exclude, sorted for each query; or null
  const int64_t* cu_excluded = nullptr;  // [num_queries + 1]

  int64_t spare = 1;           // items beyond k that a query keeps before it chooses the best
  TopKFound* found = nullptr;  // [num_queries, parts, capacity()], results in no order
  int64_t* counts = nullptr;   // [num_queries, parts], items found

  WorkQueue* queue = nullptr;

  int64_t capacity() const { return k + spare; }
  int64_t blocks() const { return ceil_div(num_items, kBlockRows); }
  int64_t groups_of_dims() const { return ceil_div(dim, 4); }
  int64_t groups_of_queries() const { return ceil_div(num_queries, kGroupQueries); }
};

struct TopKKernels {
  int64_t (*scratch)(const TopKParams&);
  void (*search)(const TopKParams&, char* scratch);
};
const TopKKernels& top_k_kernels();

}  // namespace recgrela::cpu
