// Runs the .cu sources on the CPU, thread by thread, for tests under sanitizers.
//
// Each thread of a block is a fiber; blocks run one after another. A fiber runs until it waits for others: at
// __syncthreads, or at a collective of its warp, which the last lane to arrive carries out for all lanes. Dynamic
// shared memory holds NaN when a block begins; variables declared __shared__ keep what the last block left.
#pragma once

#include "tests/simt/cuda.h"
#include "tests/simt/device.h"
#include "tests/simt/host.h"
