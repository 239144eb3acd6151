// What the kernels need, in one place: these must come before the compiler is switched to an instruction set.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#include "params.h"
