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
#include "transpose.h"

namespace {

constexpr int WEIGHT_BITS = 22;  // behind the point
constexpr int LOW_BITS = 12;     // of a weight, in its lower part

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

// 16 pixels of each of 16 rows to 8 pairs a channel: pairs[(channel·plane + pair)·16 + row].
template <int CHANNELS> INLINE void pair_up(const uint8_t* rows, int64_t pitch, int64_t plane, int32_t* pairs) {
    Bytes columns[CHANNELS * STRIP];  // of bytes, one channel after the other in turns
    for (int i = 0; i < CHANNELS; i++) transpose(rows + i * STRIP, pitch, columns + i * STRIP);
    for (int channel = 0; channel < CHANNELS; channel++)
        for (int i = 0; i < STRIP / 2; i++) {
            const Bytes a = columns[2 * i * CHANNELS + channel], b = columns[(2 * i + 1) * CHANNELS + channel];
            const Bytes first = lower(a, b), last = upper(a, b), zero = {};
            UnalignedBytes* at = (UnalignedBytes*)(pairs + (channel * plane + i) * STRIP);
            at[0] = lower(first, zero);
            at[1] = upper(first, zero);
            at[2] = lower(last, zero);
            at[3] = upper(last, zero);
        }
}

template <int CHANNELS>
INLINE void strip_to_pairs(const uint8_t* rows, int64_t pitch, int width, int64_t plane, int32_t* pairs) {
    for_blocks<STRIP, CHANNELS>(rows, pitch, width, [=](const uint8_t* block, int64_t block_pitch, int x) {
        pair_up<CHANNELS>(block, block_pitch, plane, pairs + x / 2 * STRIP);
    });
}

// See interface.h.
void resample_strip_8(const struct spr_taps* taps, const uint8_t* rows, int64_t pitch, int32_t width, int32_t channels,
                      int32_t* space, int32_t* pairs, int64_t pairs_pitch) {
    const int64_t plane = (width + STRIP - 1) / STRIP * (STRIP / 2);
    if (channels == 1)
        strip_to_pairs<1>(rows, pitch, width, plane, space);
    else
        strip_to_pairs<3>(rows, pitch, width, plane, space);
    for (int channel = 0; channel < channels; channel++)
        for (int output = 0; output < taps->outputs; output++) {
            IntVec sums[PARTS];
            weighted(taps, output, space + channel * plane * STRIP, STRIP, sums);
            int32_t* at = pairs + (int64_t)channel * taps->outputs + output;
            for (int i = 0; i < STRIP / 2; i++, at += pairs_pitch)
                *at = sums[2 * i / LANES][2 * i % LANES] | sums[2 * i / LANES][2 * i % LANES + 1] << 16;
        }
}

// See interface.h.
void resample_row_8(const struct spr_taps* taps, int32_t output, const int32_t* pairs, int64_t pairs_pitch,
                    uint8_t* result) {
    for (int64_t lane = 0; lane < pairs_pitch; lane += STRIP) {
        IntVec sums[PARTS];
        weighted(taps, output, pairs + lane, pairs_pitch, sums);
        for (int p = 0; p < PARTS; p++)
            for (int i = 0; i < LANES; i++) result[lane + p * LANES + i] = (uint8_t)sums[p][i];
    }
}

}  // namespace
