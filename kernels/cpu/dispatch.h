// Which instruction sets this build has, and which of them this processor can run.
#pragma once

#include "interface.h"

namespace sprfast {

// Best first. All but "amx" compute float32. bfloat16 is for "amx"; the others compute it in plain loops, more slowly
// than float32.
constexpr const char* INSTRUCTION_SETS[] = {"amx", "avx512", "avx2", "neon", "generic"};

// The operators for "float32" or "bfloat16" on one of them; null where this processor, its system or this build has not
// got them.
const spr_operators* operators_for(const char* instruction_set, const char* precision);

// Null where "amx" can be used, else why not.
const char* amx_missing();

}  // namespace sprfast
