// Checks of the SIMT host itself: correct kernels give correct results, and every fault that the host detects is
// reported.
#pragma once

#include <functional>

#include "tests/simt/simt.h"

namespace recgrela::simt {

constexpr Order kOrders[] = {Order::kAscending, Order::kDescending, Order::kShuffled};

struct Args {
  int n = 0;
  float* out = nullptr;
  const void* in = nullptr;
};

void check(const char* name, const std::function<bool()>& holds);
// Returns whether f throws an Error that contains `text`.
bool throws(const std::function<void()>& f, const char* text);

// Checks shuffles, votes, products, matrices and conversions, and prints the time of a switch between threads.
void check_collectives();

}  // namespace recgrela::simt
