// Schemas of linear, which has no CPU backend.
#include "linear.h"

STABLE_TORCH_LIBRARY_FRAGMENT(recgrela, m) { recgrela::ops::define<recgrela::ops::Linear>(m); }
