// Backward kernel of gated_rela for float32.
#include "kernels/gated_rela/kernels.cuh"

namespace recgrela::cuda {

template cudaError_t RelaKernels<float>::backward(const RelaPlan&, cudaStream_t);

}  // namespace recgrela::cuda
