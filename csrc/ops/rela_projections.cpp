// Schemas of rela_projections, which has no CPU backend.
#include "rela_projections.h"

STABLE_TORCH_LIBRARY_FRAGMENT(recgrela, m) { recgrela::ops::define<recgrela::ops::RelaProjections>(m); }
