// The last layers as one pass over the feature map: activation, 1x1 convolution, residual, and the weighted square.
#pragma once

#include "interface.h"
#include "partial.h"
#include "simd.h"
#include "team.h"

namespace {

constexpr int RUN = 64;      // pixels that a thread takes at once, all draws of them
constexpr int TOGETHER = 4;  // pixels whose sums are in registers
// Pixels that are asked for before they are needed: the next draw, or the next run, is elsewhere in memory.
constexpr int LOOKAHEAD = 32;
constexpr int OUTPUTS = 3;

// Lane l: lane from[l] of a, or of b from LANES on; `from` is constant once loops are unrolled.
INLINE Vec shuffle(Vec a, Vec b, IntVec from) {
#ifdef __clang__
    Vec result{};
#pragma clang loop unroll(full)
    for (int l = 0; l < LANES; l++) result[l] = from[l] < LANES ? a[from[l]] : b[from[l] - LANES];
    return result;
#else
    return __builtin_shuffle(a, b, from);
#endif
}

// Lane l: the sum of lanes l and l ^ half, of b where l has the bit `half`, else of a.
INLINE Vec merge(Vec a, Vec b, int half) {
    IntVec lane{};
#pragma GCC unroll 16
    for (int l = 0; l < LANES; l++) lane[l] = l;
    const IntVec from_b = (lane & half) / half * LANES;
    return shuffle(a, b, lane + from_b) + shuffle(a, b, (lane ^ half) + from_b);
}

// Lane i: the sum over the lanes of v[i]. Overwrites v.
INLINE Vec sums(Vec* v) {
#pragma GCC unroll 4
    for (int half = LANES / 2; half > 0; half /= 2)
#pragma GCC unroll 8
        for (int i = 0; i < half; i++) v[i] = merge(v[i], v[i + half], half);
    return v[0];
}

// The layers' parameters for one sample.
struct Layer {
    const float *a, *b, *weight;
    int channels;

    // Asks for the pixel LOOKAHEAD behind this one, which may lie beyond the map: asking never faults.
    INLINE void prefetch(const float* pixel) const {
        const uintptr_t address = (uintptr_t)pixel + (uintptr_t)LOOKAHEAD * channels * sizeof(float);
        for (int c = 0; c < channels; c += 16) __builtin_prefetch((const float*)address + c);
    }

    // dots[output][pixel]: partial sums, by lane, of TOGETHER pixels from `pixel` on; in[i] is the i-th.
    INLINE void multiply(const float* const* in, int pixel, Vec (*dots)[LANES]) const {
        Vec total[OUTPUTS][TOGETHER]{};
        for (int c = 0; c < channels; c += LANES) {
            const Vec scale = load(a + c), shift = load(b + c);
#pragma GCC unroll 4
            for (int i = 0; i < TOGETHER; i++) {
                const Vec activation = swish(load(in[i] + c) * scale + shift);
#pragma GCC unroll 3
                for (int k = 0; k < OUTPUTS; k++) total[k][i] += activation * load(weight + (int64_t)k * channels + c);
            }
        }
#pragma GCC unroll 3
        for (int k = 0; k < OUTPUTS; k++)
#pragma GCC unroll 4
            for (int i = 0; i < TOGETHER; i++) dots[k][pixel + i] = total[k][i];
    }

    // out[output]: the 1x1 convolution of `count` pixels, at most LANES; other lanes repeat the last.
    INLINE void convolve(const float* raw, int count, Vec* out) const {
        Vec dots[OUTPUTS][LANES];
        for (int pixel = 0; pixel < LANES; pixel += TOGETHER) {
            const float* in[TOGETHER];
            for (int i = 0; i < TOGETHER; i++) {
                in[i] = raw + (int64_t)(pixel + i < count ? pixel + i : count - 1) * channels;
                prefetch(in[i]);
            }
            multiply(in, pixel, dots);
        }
        for (int k = 0; k < OUTPUTS; k++) out[k] = sums(dots[k]);
    }
};

// Pixels [first, last) of an image; draw after draw, so that the sums have one order.
static void head_run(const spr_head& h, int image, int64_t first, int64_t last, float* errors) {
    const int64_t pixels = (int64_t)h.height * h.width;
    for (int d = 0; d < h.draws; d++) {
        const int64_t sample = (int64_t)image * h.draws + d;
        const Layer layer{h.affine + sample * 2 * h.channels, h.affine + (sample * 2 + 1) * h.channels, h.weight,
                          h.channels};
        const float* noise =
            h.noise + ((int64_t)d * h.noise_images + (h.noise_images == 1 ? 0 : image)) * OUTPUTS * pixels;
        for (int64_t at = first; at < last; at += LANES) {
            const int count = last - at < LANES ? (int)(last - at) : LANES;
            Vec residual[OUTPUTS], square{};
            layer.convolve(h.raw + (sample * pixels + at) * h.channels, count, residual);
            for (int k = 0; k < OUTPUTS; k++) {
                residual[k] += h.bias[d * OUTPUTS + k] + load_part(noise + k * pixels + at, count);
                square += residual[k] * residual[k];
            }
            float* out = errors + image * pixels + at;
            const Vec before = d ? load_part(out, count) : Vec{};
            store_part(out, before + h.scale[d] * square, count);
        }
    }
}

static void head(const spr_head* given, float* errors, const spr_threads* threads) {
    const spr_head& h = *given;
    const int64_t pixels = (int64_t)h.height * h.width;
    const int runs = (int)((pixels + RUN - 1) / RUN);
    in_parallel(*threads, [&](const Team& t) {
        for (int i = t.begin((int64_t)h.images * runs); i < t.end((int64_t)h.images * runs); i++) {
            const int64_t first = (int64_t)(i % runs) * RUN, last = first + RUN < pixels ? first + RUN : pixels;
            head_run(h, i / runs, first, last, errors);
        }
    });
}

}  // namespace
