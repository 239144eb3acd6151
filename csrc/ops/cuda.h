// What the operators share on CUDA. These sources are compiled where there is nvcc, and load beside a torch without
// CUDA too: the one function of libtorch that such a torch lacks is looked up when it is needed.
#pragma once

#include "common.h"
#include "kernels/common/params.h"

#ifdef RECGRELA_SIMT_HOST  // tests: the same operators on CPU tensors, in a namespace of their own
#define RECGRELA_CUDA_OPS recgrela_simt
#define RECGRELA_CUDA_KEY CPU
#else
#define RECGRELA_CUDA_OPS recgrela
#define RECGRELA_CUDA_KEY CUDA

#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#endif

namespace recgrela::ops {

namespace cuda = recgrela::cuda;

inline cuda::DType cuda_dtype(const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::Float:
      return cuda::DType::kFloat32;
    case ScalarType::Half:
      return cuda::DType::kFloat16;
    case ScalarType::BFloat16:
      return cuda::DType::kBFloat16;
    default:
      STD_TORCH_CHECK(false, "the CUDA kernels take float32, float16 and bfloat16, not ",
                      torch::headeronly::toString(x.scalar_type()));
  }
}

// The kernels take 16 bytes at a time, and rows less than 2^26 elements apart: others are copied.
inline Tensor aligned_rows(const Tensor& x) {
  const int64_t size = x.element_size();
  const bool aligned = reinterpret_cast<uintptr_t>(x.const_data_ptr()) % 16 == 0 &&
                       (x.size(0) <= 1 || (x.stride(0) * size % 16 == 0 && x.stride(0) < (int64_t{1} << 26)));
  return aligned ? x : torch::stable::clone(x);
}
inline OptTensor aligned_rows(const OptTensor& x) { return x ? OptTensor(aligned_rows(*x)) : x; }

// A single row may have any stride.
inline cuda::RowMatrix cuda_rows(const Tensor& x) {
  return {const_cast<void*>(x.const_data_ptr()), x.size(0) <= 1 ? x.size(1) : x.stride(0)};
}

inline cuda::Sequences cuda_sequences(const Tensor& cu_seqlens, int64_t num_rows) {
  cuda::Sequences s;
  s.offsets = cu_seqlens.const_data_ptr();
  s.is_int64 = cu_seqlens.scalar_type() == ScalarType::Long;
  s.num_sequences = cu_seqlens.size(0) - 1;
  s.num_rows = num_rows;
  return s;
}

#ifndef RECGRELA_SIMT_HOST
// The current stream of a device. The function is in libtorch_cuda, which is loaded where `import torch` has CUDA; it
// is not linked to, or the library would not load beside any other torch.
inline cudaStream_t current_stream(int32_t device) {
  using Function = AOTITorchError (*)(int32_t, void**);
  static const Function get = [] {
    void* const library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    return library ? reinterpret_cast<Function>(dlsym(library, "aoti_torch_get_current_cuda_stream")) : nullptr;
  }();
  STD_TORCH_CHECK(get,
                  "this PyTorch has tensors on CUDA but no libtorch_cuda.so with aoti_torch_get_current_cuda_stream");
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(get(device, &stream));
  return static_cast<cudaStream_t>(stream);
}
#endif

// Calls launch(stream) with the tensor's device as the current one, on its current stream.
template <typename Launch>
void on_device([[maybe_unused]] const Tensor& x, Launch launch) {
#ifdef RECGRELA_SIMT_HOST
  const cudaError_t error = launch(nullptr);
#else
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  const cudaError_t error = launch(current_stream(x.get_device_index()));
#endif
  const char* hint = "";
  if (error == cudaErrorNoKernelImageForDevice)
    hint = " (the library has no code for this GPU: set TORCH_CUDA_ARCH_LIST when building)";
  if (error == cudaErrorInsufficientDriver)
    hint = " (the library was built with a newer CUDA: update the driver or build with the nvcc of an older CUDA)";
  STD_TORCH_CHECK(error == cudaSuccess, "a CUDA kernel did not start: ", cudaGetErrorString(error), hint);
}

// Uninitialised memory for kernels; the caching allocator gives it back in the stream's order.
inline Tensor make_workspace(const Tensor& like, size_t bytes) {
  return torch::stable::new_empty(like, std::vector<int64_t>{static_cast<int64_t>(bytes)}, ScalarType::Byte);
}

}  // namespace recgrela::ops
