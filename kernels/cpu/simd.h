// Vectors of float in the compiler's own vector extension, for the instruction set that this file is compiled for.
//
// No function of the C++ library may be used in code compiled for one instruction set: an inline function
// that the linker merges with another file's copy would run AVX-512 on a machine without it.
#pragma once

#include <stdint.h>

namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16;
constexpr int ROWS = 14;  // of the register block: 14 x 2 accumulators, 2 vectors of weights, 1 broadcast
#elif defined(__AVX2__)
constexpr int LANES = 8;
constexpr int ROWS = 6;
#elif defined(__aarch64__)
constexpr int LANES = 4;
constexpr int ROWS = 12;  // of 32 registers, as with AVX-512
#else
constexpr int LANES = 4;
constexpr int ROWS = 6;
#endif
constexpr int PANEL = 2 * LANES;  // output channels of the register block
constexpr int CHUNK = 32;  // channels are worked on in chunks of this many; every feature map has a multiple of it

typedef float Vec __attribute__((vector_size(4 * LANES)));
typedef int32_t IntVec __attribute__((vector_size(4 * LANES)));
typedef float UnalignedVec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

#define INLINE inline __attribute__((always_inline))

INLINE Vec load(const float* p) { return *(const UnalignedVec*)p; }
INLINE void store(float* p, Vec v) { *(UnalignedVec*)p = v; }
INLINE Vec broadcast(float s) { return s - Vec{}; }
// The larger or smaller one, NaN where either is NaN.
INLINE Vec maximum(Vec a, Vec b) { return ((a > b) | (a != a)) ? a : b; }
INLINE Vec minimum(Vec a, Vec b) { return ((a < b) | (a != a)) ? a : b; }

INLINE Vec reciprocal(Vec x) {
#if defined(__AVX512F__)
    Vec r = (Vec)__builtin_ia32_rcp14ps512_mask((Vec)x, (Vec){}, (unsigned short)-1);
    return r * (2.0f - x * r);  // one Newton step from 14 bits
#else
    return 1.0f / x;
#endif
}

// e^x to 2 units in the last place within ±87; beyond it is held there. NaN stays NaN.
INLINE Vec exponential(Vec x) {
    x = x > 87.0f ? broadcast(87.0f) : x;
    x = x < -87.0f ? broadcast(-87.0f) : x;
    const float round = 12582912.0f;  // 1.5·2^23: adding it rounds to an integer
    Vec shifted = x * 1.44269504f + round;
    Vec n = shifted - round;
    Vec r = x - n * 0.693359375f;  // ln 2 in two parts
    r = r + n * 2.12194440e-4f;
    Vec p = broadcast(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    IntVec power = ((IntVec)shifted - (IntVec)broadcast(round) + 127) << 23;
    return p * (Vec)power;
}

INLINE Vec swish(Vec x) { return x * reciprocal(1.0f + exponential(-x)); }

}  // namespace
