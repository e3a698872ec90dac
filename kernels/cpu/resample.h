// The two passes of an 8-bit resampling in fixed point: sums of pixels times weights of 22 fractional bits.
//
// Lanes are what a pass does not run along: 16 rows for the pass along rows, all columns for the pass along columns.
// Pixels lie in pairs of neighbours, 16 bits each, and weights are split in two parts of 12 bits, so that one
// instruction multiplies and adds two pixels of every lane. The sums are exact whatever their order.
#pragma once

#include <stdint.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "interface.h"
#include "simd.h"

namespace {

constexpr int BAND = 16;         // rows that the first pass takes at once; lanes come in multiples of it
constexpr int WEIGHT_BITS = 22;  // behind the point
constexpr int LOW_BITS = 12;     // of a weight, in its lower part
constexpr int PARTS = BAND / LANES;

typedef uint8_t Bytes __attribute__((vector_size(16)));
typedef uint8_t UnalignedBytes __attribute__((vector_size(16), aligned(1), may_alias));
typedef uint32_t Sums __attribute__((vector_size(4 * LANES)));  // of numbers with a sign; they may wrap on the way
typedef int32_t UnalignedIntVec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

// Of each lane, the products of both halves of 16 bits, added.
INLINE IntVec multiply_pairs(IntVec a, IntVec b) {
#if defined(__AVX512BW__)
    return (IntVec)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
    return (IntVec)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#elif defined(__x86_64__)
    return (IntVec)_mm_madd_epi16((__m128i)a, (__m128i)b);
#else
    return (a << 16 >> 16) * (b << 16 >> 16) + (a >> 16) * (b >> 16);
#endif
}

// The 16 lanes of one output, as whole numbers from 0 to 255. values: its first pair, `pitch` to the next.
INLINE void weighted(const spr_taps* taps, int output, const int32_t* values, int64_t pitch, IntVec result[PARTS]) {
    const uint32_t* low = taps->low + (int64_t)output * taps->stride;
    const uint32_t* high = taps->high + (int64_t)output * taps->stride;
    values += taps->first[output] * pitch;
    Sums lows[PARTS] = {}, highs[PARTS] = {};
    for (int i = 0; i < taps->count[output]; i++, values += pitch)
        for (int p = 0; p < PARTS; p++) {
            IntVec pairs = *(const UnalignedIntVec*)(values + p * LANES);
            lows[p] += (Sums)multiply_pairs(pairs, (int32_t)low[i] - IntVec{});
            highs[p] += (Sums)multiply_pairs(pairs, (int32_t)high[i] - IntVec{});
        }
    for (int p = 0; p < PARTS; p++) {
        IntVec sum = (IntVec)(lows[p] + (highs[p] << LOW_BITS) + (1u << (WEIGHT_BITS - 1))) >> WEIGHT_BITS;
        sum = sum < 0 ? IntVec{} : sum;
        result[p] = sum > 255 ? 255 - IntVec{} : sum;
    }
}

#if defined(__clang__)
#define SHUFFLED(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLED(a, b, ...) __builtin_shuffle(a, b, (Bytes){__VA_ARGS__})
#endif
// Bytes of a and b in turns, of their lower and of their upper halves.
INLINE Bytes lower(Bytes a, Bytes b) { return SHUFFLED(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23); }
INLINE Bytes upper(Bytes a, Bytes b) {
    return SHUFFLED(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
}

// 16 rows of 16 bytes to 16 columns: four times every row in turns with the one 8 below it.
INLINE void transpose(const uint8_t* rows, int64_t pitch, Bytes columns[BAND]) {
    Bytes turned[BAND];
    for (int i = 0; i < BAND; i++) columns[i] = *(const UnalignedBytes*)(rows + i * pitch);
    for (int stage = 0; stage < 4; stage++) {
        for (int i = 0; i < BAND / 2; i++) {
            turned[2 * i] = lower(columns[i], columns[i + BAND / 2]);
            turned[2 * i + 1] = upper(columns[i], columns[i + BAND / 2]);
        }
        for (int i = 0; i < BAND; i++) columns[i] = turned[i];
    }
}

// 16 pixels of each of 16 rows to 8 pairs a channel: pairs[(channel·plane + pair)·16 + row].
template <int CHANNELS> INLINE void pair_up(const uint8_t* rows, int64_t pitch, int64_t plane, int32_t* pairs) {
    Bytes columns[CHANNELS * BAND];  // of bytes, one channel after the other in turns
    for (int i = 0; i < CHANNELS; i++) transpose(rows + i * BAND, pitch, columns + i * BAND);
    for (int channel = 0; channel < CHANNELS; channel++)
        for (int i = 0; i < BAND / 2; i++) {
            const Bytes a = columns[2 * i * CHANNELS + channel], b = columns[(2 * i + 1) * CHANNELS + channel];
            const Bytes first = lower(a, b), last = upper(a, b), zero = {};
            UnalignedBytes* at = (UnalignedBytes*)(pairs + (channel * plane + i) * BAND);
            at[0] = lower(first, zero);
            at[1] = upper(first, zero);
            at[2] = lower(last, zero);
            at[3] = upper(last, zero);
        }
}

template <int CHANNELS>
INLINE void band_to_pairs(const uint8_t* rows, int64_t pitch, int width, int64_t plane, int32_t* pairs) {
    int x = 0;
    for (; x + BAND <= width; x += BAND)
        pair_up<CHANNELS>(rows + (int64_t)x * CHANNELS, pitch, plane, pairs + x / 2 * BAND);
    if (x == width) return;
    uint8_t rest[BAND][CHANNELS * BAND] = {};
    for (int row = 0; row < BAND; row++)
        for (int i = 0; i < (width - x) * CHANNELS; i++) rest[row][i] = rows[row * pitch + (int64_t)x * CHANNELS + i];
    pair_up<CHANNELS>(rest[0], CHANNELS * BAND, plane, pairs + x / 2 * BAND);
}

// See interface.h.
void resample_band(const struct spr_taps* taps, const uint8_t* rows, int64_t pitch, int32_t width, int32_t channels,
                   int32_t* space, int32_t* pairs, int64_t pairs_pitch) {
    const int64_t plane = (width + BAND - 1) / BAND * (BAND / 2);
    if (channels == 1)
        band_to_pairs<1>(rows, pitch, width, plane, space);
    else
        band_to_pairs<3>(rows, pitch, width, plane, space);
    for (int channel = 0; channel < channels; channel++)
        for (int output = 0; output < taps->outputs; output++) {
            IntVec sums[PARTS];
            weighted(taps, output, space + channel * plane * BAND, BAND, sums);
            int32_t* at = pairs + (int64_t)channel * taps->outputs + output;
            for (int i = 0; i < BAND / 2; i++, at += pairs_pitch)
                *at = sums[2 * i / LANES][2 * i % LANES] | sums[2 * i / LANES][2 * i % LANES + 1] << 16;
        }
}

// See interface.h.
void resample_row(const struct spr_taps* taps, int32_t output, const int32_t* pairs, int64_t pairs_pitch,
                  float* result) {
    for (int64_t lane = 0; lane < pairs_pitch; lane += BAND) {
        IntVec sums[PARTS];
        weighted(taps, output, pairs + lane, pairs_pitch, sums);
        for (int p = 0; p < PARTS; p++)
            store(result + lane + p * LANES, __builtin_convertvector(sums[p], Vec) / 255.0f * 2.0f - 1.0f);
    }
}

}  // namespace
