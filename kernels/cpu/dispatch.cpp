#include "dispatch.h"

#include <string.h>

#ifdef __x86_64__
#include <cpuid.h>
#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

extern "C" {
#if defined(__x86_64__)
extern const struct spr_operators spr_float32_generic, spr_float32_avx2, spr_float32_avx512, spr_bfloat16_generic,
    spr_bfloat16_avx2, spr_bfloat16_avx512, spr_bfloat16_amx;
#elif defined(__aarch64__)
extern const struct spr_operators spr_float32_neon, spr_bfloat16_neon;
#else
extern const struct spr_operators spr_float32_generic, spr_bfloat16_generic;
#endif
}

namespace sprfast {

namespace {

// The one of a set's two tables.
const spr_operators* of_precision(const char* precision, const spr_operators& float32, const spr_operators& bfloat16) {
    return !strcmp(precision, "float32") ? &float32 : !strcmp(precision, "bfloat16") ? &bfloat16 : nullptr;
}

#ifdef __x86_64__

// What the processor has, and what of its registers the system keeps. Not by __builtin_cpu_supports: of that, not every
// compiler's runtime library has more than the name.
struct Processor {
    unsigned leaf1_ecx = 0, leaf7_ebx = 0, leaf7_edx = 0, kept = 0;

    Processor() {
        unsigned eax, ebx, ecx, edx;
        if (__get_cpuid(1, &eax, &ebx, &ecx, &edx)) leaf1_ecx = ecx;
        if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) {
            leaf7_ebx = ebx;
            leaf7_edx = edx;
        }
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

    // Null or why not.
    const char* amx_missing() const {
        constexpr unsigned bfloat16 = 1u << 22, tiles = 1u << 24, state = 3u << 17;
        if (!avx512() || (leaf7_edx & bfloat16) == 0 || (leaf7_edx & tiles) == 0) return "the processor has no AMX";
        if ((kept & state) != state) return "the system or the hypervisor does not keep the tiles of AMX";
#ifdef __linux__
        constexpr int request_permission = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
        if (syscall(SYS_arch_prctl, request_permission, tile_data) != 0)
            return "Linux does not give this process the tiles of AMX (arch_prctl)";
        return nullptr;
#else
        return "the tiles of AMX are asked for on Linux only";
#endif
    }
};

#endif

}  // namespace

const spr_operators* operators_for(const char* instruction_set, const char* precision) {
    const auto is = [&](const char* name) { return !strcmp(instruction_set, name); };
#if defined(__x86_64__)
    if (is("generic")) return of_precision(precision, spr_float32_generic, spr_bfloat16_generic);
    if (is("avx2") && Processor().avx2()) return of_precision(precision, spr_float32_avx2, spr_bfloat16_avx2);
    if (is("avx512") && Processor().avx512()) return of_precision(precision, spr_float32_avx512, spr_bfloat16_avx512);
    if (is("amx") && !strcmp(precision, "bfloat16") && !amx_missing()) return &spr_bfloat16_amx;
#elif defined(__aarch64__)
    if (is("neon")) return of_precision(precision, spr_float32_neon, spr_bfloat16_neon);
#else
    if (is("generic")) return of_precision(precision, spr_float32_generic, spr_bfloat16_generic);
#endif
    return nullptr;
}

const char* amx_missing() {
#ifdef __x86_64__
    static const char* const reason = Processor().amx_missing();
    return reason;
#else
    return "the processor has no AMX";
#endif
}

}  // namespace sprfast
