// The kernels compiled for baseline.
#include "headers.h"

#define RECGRELA_ISA baseline
#define RECGRELA_VECTOR_BYTES 16
#include "kernels.inl"
