// A resampling of 16 bits: pixels as float32 in [0, 1], weighted sums of them in double.
//
// A sum has one order, from the first pixel to the last, and each product is rounded before it is added. Lanes are as
// in resample_8_bit.h. A pixel is converted once and goes into all sums that it weighs in.
#pragma once

#include <stdint.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "interface.h"
#include "simd.h"
#include "transpose.h"

namespace {

constexpr int HALF = LANES / 2;    // doubles in a vector
constexpr int SHORTS = 2 * LANES;  // in a vector
constexpr int EIGHTS = SHORTS / 8;

typedef double Doubles __attribute__((vector_size(4 * LANES)));
typedef double UnalignedDoubles __attribute__((vector_size(4 * LANES), aligned(8), may_alias));
typedef float Floats __attribute__((vector_size(2 * LANES)));
typedef float UnalignedFloats __attribute__((vector_size(2 * LANES), aligned(4), may_alias));
typedef uint16_t Shorts __attribute__((vector_size(4 * LANES)));
typedef uint16_t UnalignedShorts __attribute__((vector_size(4 * LANES), aligned(1), may_alias));
typedef uint16_t EightShorts __attribute__((vector_size(16)));
typedef float EightFloats __attribute__((vector_size(32)));
typedef float UnalignedEightFloats __attribute__((vector_size(32), aligned(4), may_alias));

// The compiler is not to make one rounding of a product and a sum.
#if defined(__x86_64__)
#define ROUNDED(product) asm("" : "+v"(product))
#elif defined(__aarch64__)
#define ROUNDED(product) asm("" : "+w"(product))
#else
#define ROUNDED(product) asm("" : "+m"(product))
#endif

// By itself, gcc 12 makes two conversions of half a vector; of AVX-512's forms without a mask it warns.
INLINE Doubles widened(const float* at) {
#if defined(__AVX512F__)
    return (Doubles)_mm512_maskz_cvtps_pd(0xff, _mm256_loadu_ps(at));
#elif defined(__AVX2__)
    return (Doubles)_mm256_cvtps_pd(_mm_loadu_ps(at));
#else
    return __builtin_convertvector(*(const UnalignedFloats*)at, Doubles);
#endif
}
INLINE Floats narrowed(Doubles sum) {
#if defined(__AVX512F__)
    return (Floats)_mm512_maskz_cvtpd_ps(0xff, (__m512d)sum);
#elif defined(__AVX2__)
    return (Floats)_mm256_cvtpd_ps((__m256d)sum);
#else
    return __builtin_convertvector(sum, Floats);
#endif
}

// Numbers of a and b in turns, of the lower and of the upper half of every 16 bytes.
#if defined(__AVX512BW__)
INLINE Shorts lower(Shorts a, Shorts b) { return (Shorts)_mm512_unpacklo_epi16((__m512i)a, (__m512i)b); }
INLINE Shorts upper(Shorts a, Shorts b) { return (Shorts)_mm512_unpackhi_epi16((__m512i)a, (__m512i)b); }
#elif defined(__AVX2__)
INLINE Shorts lower(Shorts a, Shorts b) { return (Shorts)_mm256_unpacklo_epi16((__m256i)a, (__m256i)b); }
INLINE Shorts upper(Shorts a, Shorts b) { return (Shorts)_mm256_unpackhi_epi16((__m256i)a, (__m256i)b); }
#else
INLINE Shorts lower(Shorts a, Shorts b) {
    return (Shorts)SHUFFLED((Bytes)a, (Bytes)b, 0, 1, 16, 17, 2, 3, 18, 19, 4, 5, 20, 21, 6, 7, 22, 23);
}
INLINE Shorts upper(Shorts a, Shorts b) {
    return (Shorts)SHUFFLED((Bytes)a, (Bytes)b, 8, 9, 24, 25, 10, 11, 26, 27, 12, 13, 28, 29, 14, 15, 30, 31);
}
#endif

// A vector of each of 16 rows to columns: turned[2k + h] has, of every 16 bytes, rows 8h to 8h + 7 of number k.
// Puts into `bits` what any of them has. Asks for what lies `ahead` bytes behind: rows lie apart, which defeats
// prefetching by hardware.
INLINE void transpose_shorts(const uint8_t* rows, int64_t pitch, int ahead, Shorts turned[STRIP], Shorts& bits) {
    Shorts next[STRIP];
    for (int i = 0; i < STRIP; i++, rows += pitch) {
        asm("" : "+r"(rows));  // one address at a time: sixteen are more than there are registers
        turned[i] = *(const UnalignedShorts*)rows;
        bits |= turned[i];
        __builtin_prefetch((const uint8_t*)((uintptr_t)rows + ahead));
    }
    for (int stage = 0; stage < 4; stage++) {
        for (int i = 0; i < STRIP / 2; i++) {
            next[2 * i] = lower(turned[i], turned[i + STRIP / 2]);
            next[2 * i + 1] = upper(turned[i], turned[i + STRIP / 2]);
        }
        for (int i = 0; i < STRIP; i++) turned[i] = next[i];
    }
}

// value / top for whole values up to top = 2^n - 1, n from 8 to 16: as the division rounds, whether or not the compiler
// makes one rounding of the product and the sum.
INLINE void divide(EightShorts values, float top, float* result) {
#if defined(__AVX2__)
    // by itself, gcc 12 makes two conversions of half a vector
    const EightFloats numbers = (EightFloats)_mm256_cvtepi32_ps(_mm256_cvtepu16_epi32((__m128i)values));
#else
    const EightFloats numbers = __builtin_convertvector(values, EightFloats);
#endif
    const EightFloats shifted = numbers * (1.0f / (top + 1.0f));
    *(UnalignedEightFloats*)result = shifted + shifted * (1.0f / top);
}

// SHORTS pixels of each of 16 rows.
template <int CHANNELS> INLINE void turn(const uint8_t* rows, int64_t pitch, float top, float* turned, Shorts& bits) {
    Shorts columns[CHANNELS][STRIP];
    for (int i = 0; i < CHANNELS; i++)
        transpose_shorts(rows + i * sizeof(Shorts), pitch, 2 * CHANNELS * SPR_PIECE, columns[i], bits);
    const EightShorts* all = (const EightShorts*)columns;
    for (int i = 0; i < CHANNELS * EIGHTS; i += CHANNELS)  // eight pixels
#pragma GCC unroll 3
        for (int j = 0; j < CHANNELS; j++) {
            const EightShorts* eight = all + (i + j) / EIGHTS * STRIP * EIGHTS + (i + j) % EIGHTS;
#pragma GCC unroll 8
            for (int k = 0; k < 8; k++) {
                const int number = 8 * j + k, pixel = 8 * i / CHANNELS + number / CHANNELS;
                float* to = turned + (number % CHANNELS * SPR_PIECE + pixel) * STRIP;
                divide(eight[2 * k * EIGHTS], top, to);
                divide(eight[(2 * k + 1) * EIGHTS], top, to + STRIP / 2);
            }
        }
}

template <int CHANNELS>
INLINE uint16_t turn_rows(const uint8_t* rows, int64_t pitch, int width, float top, float* turned) {
    Shorts bits{};
    for_blocks<SHORTS, 2 * CHANNELS>(rows, pitch, width, [&](const uint8_t* block, int64_t block_pitch, int x) {
        turn<CHANNELS>(block, block_pitch, top, turned + (int64_t)x * STRIP, bits);
    });
    uint16_t all = 0;
    for (int i = 0; i < SHORTS; i++) all |= bits[i];
    return all;
}

// See interface.h.
uint16_t turn_strip_16(const uint8_t* rows, int64_t pitch, int32_t width, int32_t channels, float top, float* turned) {
    return channels == 1 ? turn_rows<1>(rows, pitch, width, top, turned)
                         : turn_rows<3>(rows, pitch, width, top, turned);
}

// Vectors of a sum, and sums, that are worked on at once: as many as registers hold.
constexpr int VECTORS = LANES >= 8 ? 2 : 1, MOST_SUMS = 6;

// A run of pixels of a resampling; see resample_16 in interface.h.
struct Run {
    const spr_weights& w;
    const float* values;
    int first, last;  // pixels
    int64_t lanes;
    double* sums;
    float* result;
    int64_t output_step, lane_step;

    INLINE int begin(int output) const { return output < w.outputs ? w.first[output] : INT32_MAX; }
    INLINE int end(int output) const { return w.first[output] + w.count[output]; }
    INLINE const double* weights(int output, int pixel) const {
        return w.weights + (int64_t)output * w.stride + (pixel - w.first[output]);
    }
    INLINE double* sum(int output) const { return sums + (output & (w.overlap - 1)) * lanes; }

    INLINE void finish(int output, const Doubles* sum) const {
        float* to = result + output * output_step;
        for (int v = 0; v < VECTORS; v++) {
            const Floats rounded = narrowed(sum[v]);
            if (lane_step == 1)
                *(UnalignedFloats*)(to + v * HALF) = rounded;
            else
                for (int i = 0; i < HALF; i++) to[(v * HALF + i) * lane_step] = rounded[i];
        }
    }
};

INLINE void load_sum(const double* from, Doubles* sum) {
    for (int v = 0; v < VECTORS; v++) sum[v] = *(const UnalignedDoubles*)(from + v * HALF);
}
INLINE void store_sum(const Doubles* sum, double* to) {
    for (int v = 0; v < VECTORS; v++) *(UnalignedDoubles*)(to + v * HALF) = sum[v];
}

// Adds the pixels from `pixel` on to COUNT outputs from `done` on, which all of them weigh in, until one of these ends
// or another output begins; as long as that happens at once, goes on with the next ones.
template <int COUNT> static void add(const Run& r, int& pixel, int& done) {
    Doubles sums[COUNT][VECTORS];
#pragma GCC unroll 6
    for (int c = 0; c < COUNT; c++) load_sum(r.sum(done + c), sums[c]);
    for (;;) {
        const int end = r.end(done), begin = r.begin(done + COUNT);
        int next = r.last < end ? r.last : end;
        if (pixel < begin && begin < next) next = begin;
        const double* weights[COUNT];
#pragma GCC unroll 6
        for (int c = 0; c < COUNT; c++) weights[c] = r.weights(done + c, pixel);
        const float* value = r.values + (pixel - r.first) * r.lanes;
        for (int i = 0; i < next - pixel; i++, value += r.lanes) {
            Doubles values[VECTORS];
#pragma GCC unroll 2
            for (int v = 0; v < VECTORS; v++) values[v] = widened(value + v * HALF);
#pragma GCC unroll 6
            for (int c = 0; c < COUNT; c++)
#pragma GCC unroll 2
                for (int v = 0; v < VECTORS; v++) {
                    Doubles product = values[v] * weights[c][i];
                    ROUNDED(product);
                    sums[c][v] += product;
                }
        }
        pixel = next;
        if (begin != next || end != next || pixel == r.last) break;
        r.finish(done++, sums[0]);
#pragma GCC unroll 6
        for (int c = 0; c < COUNT; c++)
#pragma GCC unroll 2
            for (int v = 0; v < VECTORS; v++)
                sums[c][v] = c + 1 < COUNT ? sums[c + 1 < COUNT ? c + 1 : 0][v] : Doubles{};
        if (r.begin(done + COUNT) == pixel) break;  // one more
    }
#pragma GCC unroll 6
    for (int c = 0; c < COUNT; c++) store_sum(sums[c], r.sum(done + c));
}

template <int COUNT> static void add_some(int count, const Run& r, int& pixel, int& done) {
    if constexpr (COUNT > 0) {
        if (count == COUNT)
            add<COUNT>(r, pixel, done);
        else
            add_some<COUNT - 1>(count, r, pixel, done);
    }
}

// As `add`, to more outputs than it takes at once.
static void add_to_many(Run r, int& pixel, int done, int begun) {
    if (r.end(done) < r.last) r.last = r.end(done);
    if (r.begin(begun) < r.last) r.last = r.begin(begun);
    for (int output = done; output < begun; output += MOST_SUMS) {
        int from = pixel, first = output;
        add_some<MOST_SUMS>(begun - output < MOST_SUMS ? begun - output : MOST_SUMS, r, from, first);
    }
    pixel = r.last;
}

// The first lanes of a run; the outputs that are done then.
static int add_run(const Run& r, int done) {
    int begun = done;
    while (r.begin(begun) < r.first) begun++;
    for (int pixel = r.first; pixel < r.last;) {
        const Doubles zero[VECTORS] = {};
        for (; r.begin(begun) == pixel; begun++) store_sum(zero, r.sum(begun));
        const int count = begun - done;
        if (count > MOST_SUMS)
            add_to_many(r, pixel, done, begun);
        else
            add_some<MOST_SUMS>(count, r, pixel, done);
        begun = done + count;
        for (; done < begun && r.end(done) == pixel; done++) {
            Doubles sum[VECTORS];
            load_sum(r.sum(done), sum);
            r.finish(done, sum);
        }
    }
    return done;
}

// See interface.h.
int32_t resample_16(const struct spr_weights* weights, const float* values, int32_t first, int32_t count, int32_t done,
                    int64_t lanes, double* sums, float* result, int64_t output_step, int64_t lane_step) {
    int after = done;
    for (int64_t lane = 0; lane < lanes; lane += VECTORS * HALF)
        after = add_run({*weights, values + lane, first, first + count, lanes, sums + lane, result + lane * lane_step,
                         output_step, lane_step},
                        done);
    return after;
}

}  // namespace
