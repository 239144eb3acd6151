// Kernels of gated_rela for float32, except the backward.
#include "kernels/gated_rela/kernels.cuh"

namespace recgrela::cuda {

template cudaError_t RelaKernels<float>::forward(const RelaPlan&, cudaStream_t);
template cudaError_t RelaKernels<float>::key_sums(const RelaPlan&, cudaStream_t);
template cudaError_t RelaKernels<float>::query_sums(const RelaPlan&, cudaStream_t);

}  // namespace recgrela::cuda
