#include "dispatch.h"

#include <string.h>

#ifdef __x86_64__
#include <cpuid.h>
#endif

extern "C" {
#if defined(__x86_64__)
extern const struct spr_operators spr_operators_generic, spr_operators_avx2, spr_operators_avx512;
#elif defined(__aarch64__)
extern const struct spr_operators spr_operators_neon;
#else
extern const struct spr_operators spr_operators_generic;
#endif
}

namespace sprfast {

#ifdef __x86_64__

namespace {

// What the processor has, and what of its registers the system keeps. Not by __builtin_cpu_supports: of that, not every
// compiler's runtime library has more than the name.
struct Processor {
    unsigned leaf1_ecx = 0, leaf7_ebx = 0, kept = 0;

    Processor() {
        unsigned eax, ebx, ecx, edx;
        if (__get_cpuid(1, &eax, &ebx, &ecx, &edx)) leaf1_ecx = ecx;
        if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) leaf7_ebx = ebx;
        if (leaf1_ecx & bit_OSXSAVE) __asm__("xgetbv" : "=a"(kept), "=d"(edx) : "c"(0));
    }

    // The upper halves of 16 registers; FMA.
    bool avx2() const {
        return (kept & 0x06) == 0x06 && leaf1_ecx & bit_AVX && leaf1_ecx & bit_FMA && leaf7_ebx & bit_AVX2;
    }

    // Those of 32, and masks.
    bool avx512() const {
        const unsigned needed = bit_AVX512F | bit_AVX512DQ | bit_AVX512BW | bit_AVX512VL;
        return avx2() && (kept & 0xe6) == 0xe6 && (leaf7_ebx & needed) == needed;
    }
};

}  // namespace

const spr_operators* operators_for(const char* instruction_set) {
    if (!strcmp(instruction_set, "generic")) return &spr_operators_generic;
    if (!strcmp(instruction_set, "avx2") && Processor().avx2()) return &spr_operators_avx2;
    if (!strcmp(instruction_set, "avx512") && Processor().avx512()) return &spr_operators_avx512;
    return nullptr;
}

#elif defined(__aarch64__)

const spr_operators* operators_for(const char* instruction_set) {
    return strcmp(instruction_set, "neon") ? nullptr : &spr_operators_neon;
}

#else

const spr_operators* operators_for(const char* instruction_set) {
    return strcmp(instruction_set, "generic") ? nullptr : &spr_operators_generic;
}

#endif

}  // namespace sprfast
