// Where the tests run the kernels: on the CPU, by the SIMT host (RECGRELA_SIMT_HOST), or on a GPU, compiled by nvcc.
#pragma once

#include <cstddef>
#include <functional>
#include <string>

#ifdef RECGRELA_SIMT_HOST
#include "tests/simt/simt.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

// What simt.h has for numbers on the host.
namespace recgrela::cuda {
using fp16 = __half;
using bf16 = __nv_bfloat16;
inline float to_float(fp16 x) { return __half2float(x); }
inline float to_float(bf16 x) { return __bfloat162float(x); }
template <typename E>
E from_float(float x);
template <>
inline fp16 from_float<fp16>(float x) {
  return __float2half_rn(x);
}
template <>
inline bf16 from_float<bf16>(float x) {
  return __float2bfloat16_rn(x);
}
}  // namespace recgrela::cuda
#endif

namespace recgrela::tests {

// Why no case can run here; empty if they can.
std::string obstacle();
int multiprocessors();
// Whether a case of this name can run here.
bool runs_here(const std::string& name);

// Memory that the host and the kernels share.
void* allocate(size_t bytes);
void release(void* memory);
// The text of the error that f ends with; empty if it ends without.
std::string fault_of(const std::function<void()>& f);
// Waits for the kernels, and returns their error.
cudaError_t wait();

// What the SIMT host does that the hardware may do otherwise: which thread first, when copies take place.
constexpr int kSchedules = 4;
void set_schedule(int schedule);

}  // namespace recgrela::tests
