// bfloat16: the upper half of a float32.
#pragma once

#include <string.h>

#include "simd.h"

namespace {

typedef uint16_t BFloat16;  // its bits
typedef uint32_t WordVec __attribute__((vector_size(4 * LANES)));
typedef BFloat16 HalfVec __attribute__((vector_size(2 * LANES)));
typedef BFloat16 UnalignedHalfVec __attribute__((vector_size(2 * LANES), aligned(2), may_alias));

// The nearest, ties to even; zero below the normal numbers, which the tiles of a processor take for zero too.
INLINE void store(BFloat16* p, Vec v) {
    const WordVec bits = (WordVec)v;
    WordVec rounded = bits + 0x7fff + (bits >> 16 & 1);
    rounded = v == v ? rounded : (bits | 0x400000);
    rounded = (bits & 0x7f800000) != 0 ? rounded : (bits & 0x80000000);
    *(UnalignedHalfVec*)p = __builtin_convertvector(rounded >> 16, HalfVec);
}

inline BFloat16 to_bfloat16(float value) {
    BFloat16 all[LANES];
    store(all, broadcast(value));
    return all[0];
}

}  // namespace
