// The tests on the SIMT host.
#include <algorithm>
#include <cstdlib>
#include <new>

#include "tests/backend.h"

namespace recgrela::tests {

std::string skip_reason() { return ""; }
int multiprocessors() { return cuda::multiprocessors(); }
bool set_multiprocessors(int count) {
  simt::set_multiprocessors(count);
  return true;
}
bool runs_here(const std::string&) { return true; }

void* allocate(size_t bytes) {
  void* memory = nullptr;
  if (posix_memalign(&memory, 256, bytes) != 0) throw std::bad_alloc();
  return memory;
}
void release(void* memory) { std::free(memory); }

std::string fault_of(const std::function<void()>& f) {
  try {
    f();
  } catch (const simt::Error& e) {
    return e.what();
  }
  return "";
}

cudaError_t wait() { return cudaSuccess; }

void set_schedule(int schedule) {
  const simt::Order orders[] = {simt::Order::kAscending, simt::Order::kDescending, simt::Order::kShuffled};
  const simt::Copies copies[] = {simt::Copies::kLate, simt::Copies::kEarly, simt::Copies::kMixed};
  simt::set_order(orders[std::min(schedule % kSchedules, 2)], schedule);
  simt::set_copies(copies[std::min(schedule % kSchedules, 2)]);
}

}  // namespace recgrela::tests
