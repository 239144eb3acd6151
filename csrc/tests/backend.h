// Backend that runs the kernels in the tests: the SIMT host on the CPU (RECGRELA_SIMT_HOST), or a GPU with code from
// nvcc.
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

// Conversions on the host. simt.h defines the same.
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

// Returns why no case can run here, or an empty string.
std::string skip_reason();
int multiprocessors();
// Changes their number and returns true, or returns false where it is fixed.
bool set_multiprocessors(int count);
// Returns whether the case can run here.
bool runs_here(const std::string& name);

// Memory that the host and the kernels share.
void* allocate(size_t bytes);
void release(void* memory);
// Calls f and returns the text of its error, or an empty string.
std::string fault_of(const std::function<void()>& f);
// Waits for the kernels and returns their error.
cudaError_t wait();

// Schedules that the tests try: orders of threads and times of asynchronous copies that hardware could choose.
constexpr int kSchedules = 4;
void set_schedule(int schedule);

}  // namespace recgrela::tests
