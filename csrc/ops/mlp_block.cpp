// Schemas of mlp_block, which has no CPU backend.
#include "mlp_block.h"

STABLE_TORCH_LIBRARY_FRAGMENT(recgrela, m) { recgrela::ops::define<recgrela::ops::MlpBlock>(m); }
