// Backward kernel of gated_rela for bfloat16.
#include "kernels/gated_rela/kernels.cuh"

namespace recgrela::cuda {

template cudaError_t RelaKernels<bf16>::backward(const RelaPlan&, cudaStream_t);

}  // namespace recgrela::cuda
