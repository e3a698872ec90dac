#include "dispatch.h"

#include <string.h>

extern "C" {
extern const struct spr_operators spr_operators_generic;
#ifdef __x86_64__
extern const struct spr_operators spr_operators_avx2, spr_operators_avx512;
#endif
}

namespace sprfast {

const spr_operators* operators_for(const char* instruction_set) {
    if (!strcmp(instruction_set, "generic")) return &spr_operators_generic;
#ifdef __x86_64__
    __builtin_cpu_init();
    if (!strcmp(instruction_set, "avx2") && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        return &spr_operators_avx2;
    if (!strcmp(instruction_set, "avx512") && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"))
        return &spr_operators_avx512;
#endif
    return nullptr;
}

}  // namespace sprfast
