// Kernels of gated_rela for float16, except the backward.
#include "kernels/gated_rela/kernels.cuh"

namespace recgrela::cuda {

template cudaError_t RelaKernels<fp16>::forward(const RelaPlan&, cudaStream_t);
template cudaError_t RelaKernels<fp16>::key_sums(const RelaPlan&, cudaStream_t);
template cudaError_t RelaKernels<fp16>::query_sums(const RelaPlan&, cudaStream_t);

}  // namespace recgrela::cuda
