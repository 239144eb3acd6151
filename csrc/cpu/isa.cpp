#include "isa.h"

#include <atomic>
#include <cstring>

namespace recgrela::cpu {
namespace {

struct Entry {
  Isa isa;
  const char* name;
  bool is_supported;
};

// Instruction sets, the widest first. Each requires the processor features that foreach_isa.inl compiles for.
const Entry table[] = {
#if defined(__x86_64__)
    {Isa::kAvx512, "avx512",
     __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma")},
    {Isa::kAvx2, "avx2", __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")},
#endif
    {Isa::kBaseline, "baseline", true},
};

const Entry* widest() {
  const Entry* entry = table;
  while (!entry->is_supported) ++entry;
  return entry;
}

std::atomic<const Entry*> chosen{widest()};

}  // namespace

Isa isa() { return chosen.load()->isa; }

const char* isa_name() { return chosen.load()->name; }

bool set_isa(const char* name) {
  for (const Entry& entry : table)
    if (entry.is_supported && std::strcmp(entry.name, name) == 0) {
      chosen = &entry;
      return true;
    }
  return false;
}

}  // namespace recgrela::cpu
