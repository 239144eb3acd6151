// Interface of the SIMT host: settings for tests, and functions that implement CUDA's functions.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>

namespace recgrela::simt {

// Fault of a kernel. launch throws it without running the rest of the grid.
struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Order in which warps, and lanes within a warp, run between two barriers. kShuffled: a new random order after every
// barrier, and sometimes another warp takes over at a collective.
enum class Order { kAscending, kDescending, kShuffled };
void set_order(Order order, uint64_t seed = 0);

// Time at which asynchronous copies take place: as late as copies_wait allows, at once, or either at random.
enum class Copies { kLate, kEarly, kMixed };
void set_copies(Copies copies);

void set_multiprocessors(int count);

enum class Collective {
  kSyncWarp,
  kShuffle,
  kShuffleXor,
  kShuffleUp,
  kShuffleDown,
  kBallot,
  kMmaBf16,
  kMmaFp16,
  kMmaTf32,
  kTransposeMatrix,
  kLoadMatrices,
  kLoadMatricesTransposed,
};

// Called by each lane of `mask` with its operands; returns when all lanes have called it, with the results in place.
void collective(Collective kind, uint32_t mask, void* operands);
void barrier();
// Called by each lane that stores its part of matrices at `address`, which all lanes of its warp must do. Lanes do not
// wait for each other, so that a missing barrier before or after the store is found; the next __syncwarp or
// __syncthreads, or the end of the warp, fails if its lanes have not stored at the same addresses.
void note_store(const void* address);
[[noreturn]] void fail(const std::string& message);  // ends the launch from within a thread

struct MmaOperands {
  float* d;
  const uint32_t *a, *b;
};
struct MatrixOperands {
  uint32_t* r;
  const void* row;
  uint16_t copy[8];  // the row when its lane arrived: later writes by other lanes are a race
};
struct ShuffleOperands {
  uint64_t value;
  unsigned argument, width;
  uint64_t result;
};
struct VoteOperands {
  bool predicate;
  uint32_t result;
};

template <typename T>
T shuffle(Collective kind, uint32_t mask, T value, unsigned argument, int width) {
  static_assert(sizeof(T) <= 8);
  ShuffleOperands s{0, argument, static_cast<unsigned>(width), 0};
  std::memcpy(&s.value, &value, sizeof(T));
  collective(kind, mask, &s);
  std::memcpy(&value, &s.result, sizeof(T));
  return value;
}

// Runs call(arguments) in every thread of a grid.
void run(int64_t blocks, int threads, size_t shared_bytes, void (*call)(const void*), const void* arguments);

struct Index {
  unsigned x, y, z;
};

}  // namespace recgrela::simt
