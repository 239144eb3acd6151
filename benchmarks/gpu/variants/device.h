// Memory and times of a GPU, or of the CPU with the SIMT host (RECGRELA_SIMT_HOST).
#pragma once

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#include "kernels/common/params.h"

namespace recgrela::variants {

inline void require(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
#ifdef RECGRELA_SIMT_HOST
  std::fprintf(stderr, "%s failed\n", what);
#else
  std::fprintf(stderr, "%s failed: %s\n", what, cudaGetErrorString(error));
#endif
  std::exit(1);
}

#ifdef RECGRELA_SIMT_HOST
inline bool has_device() { return true; }
inline void* allocate(size_t bytes) { return std::aligned_alloc(256, (bytes + 255) / 256 * 256); }
inline void release(void* memory) { std::free(memory); }
inline void copy(void* to, const void* from, size_t bytes) { std::memcpy(to, from, bytes); }
inline void fill(void* to, int value, size_t bytes) { std::memset(to, value, bytes); }
inline void wait() {}
// Returns the microseconds of each call.
inline std::vector<float> time_each(const std::vector<std::function<void()>>& calls) {
  std::vector<float> us;
  for (const auto& call : calls) {
    const auto begin = std::chrono::steady_clock::now();
    call();
    us.push_back(std::chrono::duration<float, std::micro>(std::chrono::steady_clock::now() - begin).count());
  }
  return us;
}
#else
inline bool has_device() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess && count > 0;
}
inline void* allocate(size_t bytes) {
  void* memory = nullptr;
  require(cudaMalloc(&memory, bytes ? bytes : 1), "cudaMalloc");
  return memory;
}
inline void release(void* memory) { cudaFree(memory); }
inline void copy(void* to, const void* from, size_t bytes) {
  require(cudaMemcpy(to, from, bytes, cudaMemcpyDefault), "cudaMemcpy");
}
inline void fill(void* to, int value, size_t bytes) { require(cudaMemset(to, value, bytes), "cudaMemset"); }
inline void wait() { require(cudaDeviceSynchronize(), "a kernel"); }
inline std::vector<float> time_each(const std::vector<std::function<void()>>& calls) {
  std::vector<cudaEvent_t> events(calls.size() + 1);
  for (auto& event : events) require(cudaEventCreate(&event), "cudaEventCreate");
  require(cudaEventRecord(events[0]), "cudaEventRecord");
  for (size_t i = 0; i < calls.size(); ++i) {
    calls[i]();
    require(cudaEventRecord(events[i + 1]), "cudaEventRecord");
  }
  wait();
  std::vector<float> us(calls.size());
  for (size_t i = 0; i < calls.size(); ++i) {
    require(cudaEventElapsedTime(&us[i], events[i], events[i + 1]), "cudaEventElapsedTime");
    us[i] *= 1e3f;
  }
  for (auto& event : events) cudaEventDestroy(event);
  return us;
}
#endif

// Memory of the device.
class Memory {
 public:
  explicit Memory(size_t bytes) : memory_(allocate(bytes), release), bytes(bytes) {}
  void* data() const { return memory_.get(); }
  template <typename T>
  T* as() const {
    return static_cast<T*>(data());
  }

 private:
  std::shared_ptr<void> memory_;

 public:
  size_t bytes;
};

}  // namespace recgrela::variants
