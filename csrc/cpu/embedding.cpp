// The kernels of embedding, compiled for each instruction set.
#include "embedding.h"

#define RECGRELA_KERNELS "embedding.inl"
#include "foreach_isa.inl"

RECGRELA_DEFINE_KERNELS(EmbeddingKernels, embedding_kernels)
