// Code that the CUDA backends of the operators share. It is compiled only if nvcc is available. The library also loads
// with a CPU build of torch: the only libtorch function that such a build lacks is looked up at run time.
#pragma once

#include "common.h"
#include "kernels/common/params.h"

#ifdef RECGRELA_SIMT_HOST  // tests: the same operators on CPU tensors, in the namespace recgrela_simt
#define RECGRELA_CUDA_OPS recgrela_simt
#define RECGRELA_CUDA_KEY CPU
#define RECGRELA_SIMT_DEFINE(Op) \
  STABLE_TORCH_LIBRARY_FRAGMENT(recgrela_simt, m) { recgrela::ops::define<recgrela::ops::Op>(m); }
#else
#define RECGRELA_CUDA_OPS recgrela
#define RECGRELA_CUDA_KEY CUDA
#define RECGRELA_SIMT_DEFINE(Op)

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#endif

namespace recgrela::ops {

namespace cuda = recgrela::cuda;

inline cuda::DType cuda_dtype(ScalarType type) {
  switch (type) {
    case ScalarType::Float:
      return cuda::DType::kFloat32;
    case ScalarType::Half:
      return cuda::DType::kFloat16;
    case ScalarType::BFloat16:
      return cuda::DType::kBFloat16;
    default:
      refuse("the CUDA kernels take float32, float16 and bfloat16, not ", torch::headeronly::toString(type));
  }
}
inline cuda::DType cuda_dtype(const Tensor& x) { return cuda_dtype(x.scalar_type()); }

// Copies x if its rows are not aligned to 16 bytes or if they are 2^26 or more elements apart.
inline Tensor aligned_rows(const Tensor& x) {
  const int64_t size = x.element_size();
  const bool aligned = reinterpret_cast<uintptr_t>(x.const_data_ptr()) % 16 == 0 &&
                       (x.size(0) <= 1 || (x.stride(0) * size % 16 == 0 && x.stride(0) < (int64_t{1} << 26)));
  return aligned ? x : torch::stable::clone(x);
}
inline OptTensor aligned_rows(const OptTensor& x) { return x ? OptTensor(aligned_rows(*x)) : x; }

// Copies x if its rows are 2^31 or more elements apart.
inline Tensor near_rows(const Tensor& x) {
  return x.size(0) <= 1 || x.stride(0) < (int64_t{1} << 31) ? x : torch::stable::clone(x);
}
inline OptTensor near_rows(const OptTensor& x) { return x ? OptTensor(near_rows(*x)) : x; }

// Copies a contiguous tensor that is not aligned to 16 bytes.
inline OptTensor aligned(const OptTensor& x) {
  return x && reinterpret_cast<uintptr_t>(x->const_data_ptr()) % 16 ? OptTensor(torch::stable::clone(*x)) : x;
}

// Returns a matrix, or a vector as a matrix of one row. It is absent if the operand is, or if the result is not wanted.
inline cuda::RowMatrix cuda_rows(const OptTensor& x) {
  if (!x || (x->dim() == 1 && x->size(0) == 0)) return {};
  // a single row may have any stride
  const int64_t stride = x->dim() == 1 ? x->size(0) : x->size(0) <= 1 ? x->size(1) : x->stride(0);
  return {const_cast<void*>(x->const_data_ptr()), stride};
}

// The parts of a state [B, ...], which check_state has checked, as rows.
inline cuda::RowMatrix state_rows(const Tensor& x) { return {x.mutable_data_ptr(), x.stride(0)}; }

inline cuda::Sequences cuda_sequences(const Tensor& cu_seqlens, int64_t num_rows) {
  cuda::Sequences s;
  s.offsets = cu_seqlens.const_data_ptr();
  s.is_int64 = cu_seqlens.scalar_type() == ScalarType::Long;
  s.num_sequences = cu_seqlens.size(0) - 1;
  s.num_rows = num_rows;
  return s;
}

// Makes the parameters of a dropout of `numel` elements with entry `index` of `seed`, which has num_seeds entries.
inline cuda::Dropout cuda_dropout(double rate, const OptTensor& seed, int64_t index, int64_t num_seeds,
                                  const Tensor& like, int64_t numel) {
  const DropoutRate r = dropout_rate(rate, seed, num_seeds, like, numel);
  if (rate == 0) return {};
  return {static_cast<const int64_t*>(seed->const_data_ptr()) + index, r.threshold, static_cast<float>(r.scale)};
}

#ifndef RECGRELA_SIMT_HOST
// Returns the current stream of a device. The function is in libtorch_cuda, which only CUDA builds of torch have;
// linking to it would keep this library from loading with any other build.
inline cudaStream_t current_stream(int32_t device) {
  using Function = AOTITorchError (*)(int32_t, void**);
  static const Function get = [] {
    void* const library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    return library ? reinterpret_cast<Function>(dlsym(library, "aoti_torch_get_current_cuda_stream")) : nullptr;
  }();
  RECGRELA_CHECK(get,
                 "this PyTorch has tensors on CUDA but no libtorch_cuda.so with aoti_torch_get_current_cuda_stream");
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(get(device, &stream));
  return static_cast<cudaStream_t>(stream);
}
#endif

// Makes the tensor's device the current one and calls launch(stream) with that device's current stream.
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
    hint = "; the library has no code for this GPU: set TORCH_CUDA_ARCH_LIST when building";
  if (error == cudaErrorInsufficientDriver)
    hint = "; the library was built with a newer CUDA than the driver supports: update the driver or use an older nvcc";
  RECGRELA_CHECK(error == cudaSuccess, "a CUDA kernel failed to launch: ", cudaGetErrorString(error), hint);
}

// Runs a kernel with a workspace, on the device of x. The caching allocator reuses the workspace in stream order.
template <typename Params>
void run_kernel(const Tensor& x, Params& p, size_t (*workspace_bytes)(const Params&),
                cudaError_t (*kernel)(const Params&, cudaStream_t)) {
  on_device(x, [&](cudaStream_t stream) {
    const Tensor workspace = make(x, {static_cast<int64_t>(workspace_bytes(p))}, ScalarType::Byte);
    p.workspace = workspace.mutable_data_ptr();
    return kernel(p, stream);
  });
}

}  // namespace recgrela::ops

// Registers the CUDA backend of an op, the struct recgrela::ops::Cuda of the including file.
#define RECGRELA_CUDA_OP(Op)                                             \
  STABLE_TORCH_LIBRARY_IMPL(RECGRELA_CUDA_OPS, RECGRELA_CUDA_KEY, m) {   \
    recgrela::ops::implement<recgrela::ops::Op, recgrela::ops::Cuda>(m); \
  }                                                                      \
  RECGRELA_SIMT_DEFINE(Op)
