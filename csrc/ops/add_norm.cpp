// The schemas of add_norm.
#include "add_norm.h"

STABLE_TORCH_LIBRARY_FRAGMENT(recgrela, m) { recgrela::ops::define<recgrela::ops::AddNorm>(m); }
