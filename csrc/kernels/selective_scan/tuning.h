// Constants of selective_scan that only a measurement can decide.
#pragma once

// Channels that a thread of the backward processes, each with 4 of its states: 4 or 2. With 4, a row takes the fewest
// instructions and a multiprocessor of an H100 holds 8 warps; with 2, it holds more warps.
#ifndef RECGRELA_SELECTIVE_SCAN_BACKWARD_CHANNELS
#define RECGRELA_SELECTIVE_SCAN_BACKWARD_CHANNELS 4
#endif

// Rows that a thread of the forward processes at a time; it loads the next ones meanwhile: 2 or 4. More rows hide
// slower loads and share counters.
#ifndef RECGRELA_SELECTIVE_SCAN_FORWARD_ROWS
#define RECGRELA_SELECTIVE_SCAN_FORWARD_ROWS 4
#endif

// Threads of the forward on a multiprocessor, for which registers are limited: 384 or 512.
#ifndef RECGRELA_SELECTIVE_SCAN_FORWARD_RESIDENT
#define RECGRELA_SELECTIVE_SCAN_FORWARD_RESIDENT 512
#endif
