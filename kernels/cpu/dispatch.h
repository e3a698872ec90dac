// Which instruction sets this build has, and which of them this processor can run.
#pragma once

#include "interface.h"

namespace sprfast {

constexpr const char* INSTRUCTION_SETS[] = {"avx512", "avx2", "neon", "generic"};  // best first

// The operators for one of them; null where this processor or this build has not got them.
const spr_operators* operators_for(const char* instruction_set);

}  // namespace sprfast
