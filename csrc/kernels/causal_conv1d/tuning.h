// Sizes that only a measurement can decide.
#pragma once

// Threads of a block: 64, 128 or 256. More threads share one search for boundaries and one partial sum.
#ifndef RECGRELA_CAUSAL_CONV1D_THREADS
#define RECGRELA_CAUSAL_CONV1D_THREADS 128
#endif

// Rows of each of the two batches that a thread loads ahead; half as many in the backward of float32. 4, or 8 with at
// most 12 warps in the forward and 8 in the backward.
#ifndef RECGRELA_CAUSAL_CONV1D_ROWS
#define RECGRELA_CAUSAL_CONV1D_ROWS 4
#endif

// Warps of a multiprocessor among which the host divides the rows, and for which registers are kept, in steps of
// RECGRELA_CAUSAL_CONV1D_THREADS / 32: 8 to 16 in the forward, 8 or 12 in the backward.
#ifndef RECGRELA_CAUSAL_CONV1D_FORWARD_WARPS
#define RECGRELA_CAUSAL_CONV1D_FORWARD_WARPS 16
#endif
#ifndef RECGRELA_CAUSAL_CONV1D_BACKWARD_WARPS
#define RECGRELA_CAUSAL_CONV1D_BACKWARD_WARPS 12
#endif
