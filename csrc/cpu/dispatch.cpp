// Chooses the instruction set once, at run time, from what the processor has.
#include <cstring>

#include "headers.h"

namespace recgrela::cpu {

#define RECGRELA_DECLARE(isa) \
  namespace isa {             \
  template <typename T>       \
  Kernels<T> make_kernels();  \
  }
RECGRELA_DECLARE(baseline)
#if defined(__x86_64__)
RECGRELA_DECLARE(avx2)
RECGRELA_DECLARE(avx512)
#endif
#undef RECGRELA_DECLARE

namespace {

struct Isa {
  const char* name;
  bool usable;
  Kernels<float> f32{};
  Kernels<double> f64{};

  // The tables come from functions compiled for the instruction set: only a processor that has it may call them.
  Isa(const char* name, bool usable, Kernels<float> (*make_f32)(), Kernels<double> (*make_f64)())
      : name(name), usable(usable) {
    if (usable) f32 = make_f32(), f64 = make_f64();
  }
};

// widest first
const Isa table[] = {
#if defined(__x86_64__)
    {"avx512",
     __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma"),
     avx512::make_kernels<float>, avx512::make_kernels<double>},
    {"avx2", __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"), avx2::make_kernels<float>,
     avx2::make_kernels<double>},
#endif
    {"baseline", true, baseline::make_kernels<float>, baseline::make_kernels<double>},
};

const Isa* widest() {
  const Isa* isa = table;
  while (!isa->usable) ++isa;
  return isa;
}

std::atomic<const Isa*> chosen{widest()};

}  // namespace

template <>
const Kernels<float>& kernels<float>() {
  return chosen.load()->f32;
}
template <>
const Kernels<double>& kernels<double>() {
  return chosen.load()->f64;
}

const char* isa() { return chosen.load()->name; }

bool set_isa(const char* name) {
  for (const Isa& isa : table)
    if (isa.usable && std::strcmp(isa.name, name) == 0) {
      chosen = &isa;
      return true;
    }
  return false;
}

}  // namespace recgrela::cpu
