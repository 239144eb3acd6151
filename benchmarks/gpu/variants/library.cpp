// Exports of a variant's library; RECGRELA_OP is its operator.
#include "ops.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

using Op = recgrela::variants::RECGRELA_OP;

EXPORT size_t recgrela_workspace(const Op::Params& p, bool backward) { return Op::workspace(p, backward); }

EXPORT cudaError_t recgrela_run(const Op::Params& p, bool backward) {
#ifdef RECGRELA_SIMT_HOST
  try {
    return Op::run(p, backward);
  } catch (const recgrela::simt::Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    std::abort();
  }
#else
  return Op::run(p, backward);
#endif
}
