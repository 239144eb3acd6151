// Sizes of gated_rela's kernels that measurements decide. Every macro can be set by the compiler's command line.
#pragma once

// Blocks of two warps per multiprocessor of the backward for heads of up to 16 channels at 16 bits, for which the
// compiler limits registers: 4 (255 registers), 6 (168) or 8 (128, with spilling).
#ifndef RECGRELA_GATED_RELA_BACKWARD_BLOCKS
#define RECGRELA_GATED_RELA_BACKWARD_BLOCKS 6
#endif
