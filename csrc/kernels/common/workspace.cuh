// Layout of the arrays in the workspace of an operator.
#pragma once

#include "kernels/common/host.cuh"

namespace recgrela::cuda {

// Hands out arrays one after the other, each aligned to 256 bytes. If the memory is null, it only counts bytes, so that
// one function both sizes a workspace and lays it out.
class Workspace {
 public:
  explicit Workspace(void* memory) : memory_(static_cast<char*>(memory)) {}

  void* take_bytes(int64_t bytes) {
    void* const array = memory_ ? memory_ + size_ : nullptr;
    size_ += ceil_div(bytes, 256) * 256;
    return array;
  }
  float* take_floats(int64_t count) { return static_cast<float*>(take_bytes(count * int64_t{sizeof(float)})); }
  size_t size() const { return size_; }

 private:
  char* const memory_;
  size_t size_ = 0;
};

}  // namespace recgrela::cuda
