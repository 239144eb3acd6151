// The CUDA operators for CPU tensors, torch.ops.recgrela_simt: the same registration code and kernels, run thread by
// thread by the SIMT host.
#include "ops/causal_conv1d.h"
#include "ops/gated_rela.h"
#include "ops/linear_scan.h"
#include "ops/selective_scan.h"

STABLE_TORCH_LIBRARY(recgrela_simt, m) {
  for (const char* schema : recgrela::ops::kRelaSchemas) m.def(schema);
  for (const char* schema : recgrela::ops::kConvSchemas) m.def(schema);
  for (const char* schema : recgrela::ops::kLinearScanSchemas) m.def(schema);
  for (const char* schema : recgrela::ops::kSelectiveScanSchemas) m.def(schema);
}
