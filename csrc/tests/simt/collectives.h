// Collectives of a warp, carried out for all lanes at once.
#pragma once

#include <cstdint>

#include "tests/simt/host.h"

namespace recgrela::simt {

constexpr int kLanes = 32;

const char* name(Collective kind);

// Carries out a collective of `lanes`; operands[lane] points to the operands of a lane, results included.
void carry_out(Collective kind, uint32_t lanes, void* const* operands);

}  // namespace recgrela::simt
