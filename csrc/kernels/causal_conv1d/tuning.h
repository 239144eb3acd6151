// Sizes that only a measurement can decide.
#pragma once

// Threads of a block: 64, 128 or 256. More threads share one search for boundaries and one partial sum.
#ifndef RECGRELA_CAUSAL_CONV1D_THREADS
#define RECGRELA_CAUSAL_CONV1D_THREADS 128
#endif

// Rows of each of the two batches that a thread loads ahead, 4 or 8; half as many in the backward of float32.
// With 8, kernels of size 3 and 4 spill registers unless there are at most 12 warps in the forward and 8 in the
// backward.
#ifndef RECGRELA_CAUSAL_CONV1D_ROWS
#define RECGRELA_CAUSAL_CONV1D_ROWS 4
#endif

// Warps of a multiprocessor among which the host divides the rows, and for which registers are kept: 8 to 24 in steps
// of RECGRELA_CAUSAL_CONV1D_THREADS / 32. With 24 in the forward, or more than 12 in the backward, kernels of size 3
// and 4 spill registers.
#ifndef RECGRELA_CAUSAL_CONV1D_FORWARD_WARPS
#define RECGRELA_CAUSAL_CONV1D_FORWARD_WARPS 16
#endif
#ifndef RECGRELA_CAUSAL_CONV1D_BACKWARD_WARPS
#define RECGRELA_CAUSAL_CONV1D_BACKWARD_WARPS 12
#endif
