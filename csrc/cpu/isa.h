// The instruction set of the CPU kernels, chosen at run time.
#pragma once

namespace recgrela::cpu {

enum class Isa { kBaseline, kAvx2, kAvx512 };

Isa isa();  // the widest that the processor supports, unless set_isa chose another

const char* isa_name();          // "avx512", "avx2" or "baseline"
bool set_isa(const char* name);  // for tests; false if the processor does not support it

}  // namespace recgrela::cpu
