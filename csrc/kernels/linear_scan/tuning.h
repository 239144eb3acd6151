// Sizes that only a measurement can decide.
#pragma once

// Threads of a block: 64, 128 or 256. More threads share one search for segments and one partial sum; fewer divide the
// sequences of a small batch more evenly among multiprocessors.
#ifndef RECGRELA_LINEAR_SCAN_THREADS
#define RECGRELA_LINEAR_SCAN_THREADS 128
#endif

// Registers of a thread for each of the two batches of rows that it loads ahead: 16, 32, or 48 if
// RECGRELA_LINEAR_SCAN_WARPS is 8.
#ifndef RECGRELA_LINEAR_SCAN_BATCH_REGISTERS
#define RECGRELA_LINEAR_SCAN_BATCH_REGISTERS 32
#endif

// Warps for which registers are kept on a multiprocessor: 8 or 16.
#ifndef RECGRELA_LINEAR_SCAN_WARPS
#define RECGRELA_LINEAR_SCAN_WARPS 16
#endif
