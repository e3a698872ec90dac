// The end of a row that is no whole number of vectors.
#pragma once

#include "simd.h"

namespace {

// The first `count` lanes; zero in the others.
INLINE Vec load_part(const float* p, int count) {
    if (count >= LANES) return load(p);
    Vec v{};
    for (int i = 0; i < count; i++) v[i] = p[i];
    return v;
}

INLINE void store_part(float* p, Vec v, int count) {
    if (count >= LANES)
        store(p, v);
    else
        for (int i = 0; i < count; i++) p[i] = v[i];
}

}  // namespace
