// Schemas of embedding. On the CPU recgrela/ops/embedding.py composes it from other operators.
#include "embedding.h"

STABLE_TORCH_LIBRARY_FRAGMENT(recgrela, m) { recgrela::ops::define<recgrela::ops::Embedding>(m); }
