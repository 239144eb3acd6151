// Kernels of gated_rela's backward for heads of 64 and 128 channels in bfloat16.
#include "kernels/gated_rela/wide/launch_gradients.cuh"

namespace recgrela::cuda {

template cudaError_t RelaKernels<bf16>::wide_query_sums(const RelaPlan&, cudaStream_t);
template cudaError_t RelaKernels<bf16>::wide_backward(const RelaPlan&, cudaStream_t);

}  // namespace recgrela::cuda
