// Constants of selective_scan that only a measurement can decide.
#pragma once

// Channels that a thread of the backward processes, each with 4 of its states: 4 or 2. With 4, a row takes the fewest
// instructions and a multiprocessor of an H100 holds 8 warps; with 2, it holds more warps.
#ifndef RECGRELA_SELECTIVE_SCAN_BACKWARD_CHANNELS
#define RECGRELA_SELECTIVE_SCAN_BACKWARD_CHANNELS 4
#endif
