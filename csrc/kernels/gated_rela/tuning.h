// Sizes of gated_rela's kernels that measurements decide. Every macro can be set by the compiler's command line.
#pragma once

// Blocks of two warps per multiprocessor of the backward for heads of up to 16 channels at 16 bits, for which the
// compiler limits registers: 4 (255 registers) or 6 (168).
#ifndef RECGRELA_GATED_RELA_BACKWARD_BLOCKS
#define RECGRELA_GATED_RELA_BACKWARD_BLOCKS 6
#endif

// Rows of a chunk of the forward for heads of 64 and 128 channels at 16 bits: 32, 48 or 64. Fewer rows need fewer
// registers and less shared memory; more rows share a barrier and the states' operands.
#ifndef RECGRELA_GATED_RELA_WIDE_ROWS_64
#define RECGRELA_GATED_RELA_WIDE_ROWS_64 64
#endif
#ifndef RECGRELA_GATED_RELA_WIDE_ROWS_128
#define RECGRELA_GATED_RELA_WIDE_ROWS_128 64
#endif

// Bytes of a matrix that a warp of the forward for heads of up to 32 channels copies to shared memory at a time, ahead
// of their use, in whole tiles of 16 rows: 512, 1024 or 2048.
#ifndef RECGRELA_GATED_RELA_STEP_BYTES
#define RECGRELA_GATED_RELA_STEP_BYTES 1024
#endif

// Blocks of two warps per multiprocessor of the forward for heads of up to 16 channels in bfloat16, for which the
// compiler limits registers: 6 (168) or 8 (128).
#ifndef RECGRELA_GATED_RELA_FORWARD_BLOCKS
#define RECGRELA_GATED_RELA_FORWARD_BLOCKS 8
#endif
