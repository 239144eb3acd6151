// The tests on a GPU: the same cases, in managed memory.
#include <algorithm>
#include <stdexcept>

#include "tests/backend.h"

namespace recgrela::tests {

std::string skip_reason() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess) return cudaGetErrorString(error);
  return count ? "" : "there is no GPU";
}

int multiprocessors() {
  int count = 0;
  return cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, 0) == cudaSuccess ? count : 0;
}
bool set_multiprocessors(int) { return false; }

// A failed check in a kernel ends the CUDA context and all later cases; rows gigabytes apart may exceed the machine's
// memory.
bool runs_here(const std::string& name) {
  for (const char* part : {"/refusals", "/sparse"})
    if (name.find(part) != std::string::npos) return false;
  return true;
}

void* allocate(size_t bytes) {
  void* memory = nullptr;
  const cudaError_t error = cudaMallocManaged(&memory, std::max<size_t>(bytes, 1));
  if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorString(error));
  return memory;
}
void release(void* memory) { cudaFree(memory); }

std::string fault_of(const std::function<void()>& f) {
  f();
  return wait() == cudaSuccess ? "" : cudaGetErrorString(cudaGetLastError());
}

cudaError_t wait() { return cudaDeviceSynchronize(); }

void set_schedule(int) {}  // the hardware has its own

}  // namespace recgrela::tests
