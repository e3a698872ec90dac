// The two passes of a resampling of 16 bits: pixels as float32 in [0, 1], weighted sums of them in double.
//
// A sum has one order, from the first pixel to the last, and each product is rounded before it is added. Lanes are as
// in resample_8_bit.h.
#pragma once

#include <stdint.h>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#include "interface.h"
#include "simd.h"
#include "transpose.h"

namespace {

constexpr int HALF = LANES / 2;  // doubles in a vector

typedef double Doubles __attribute__((vector_size(4 * LANES)));
typedef float Floats __attribute__((vector_size(2 * LANES)));
typedef float UnalignedFloats __attribute__((vector_size(2 * LANES), aligned(4), may_alias));
typedef uint16_t Words __attribute__((vector_size(16)));
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

INLINE Doubles widened(const float* at) {
#if defined(__AVX512F__)
    // by itself, gcc 12 makes two conversions of half a vector; of the form without a mask it warns
    return (Doubles)_mm512_maskz_cvtps_pd(0xff, _mm256_loadu_ps(at));
#else
    return __builtin_convertvector(*(const UnalignedFloats*)at, Doubles);
#endif
}

// As many sums go on at once as keep the processor from waiting for each one, within its registers.
constexpr int SUMS_AT_ONCE = LANES >= 16 ? 3 : 1;

// The 16 lanes of one output in each of COUNT planes. values: of the first plane's first pixel, `pitch` to the next
// pixel's, `plane` to the next plane's; result[plane·16 + lane].
template <int COUNT>
INLINE void weighted(const spr_weights* weights, int output, const float* values, int64_t pitch, int64_t plane,
                     float* result) {
    const double* weight = weights->weights + (int64_t)output * weights->stride;
    values += weights->first[output] * pitch;
    Doubles sums[COUNT][2 * PARTS] = {};
    for (int i = 0; i < weights->count[output]; i++, values += pitch)
#pragma GCC unroll 3
        for (int c = 0; c < COUNT; c++)
#pragma GCC unroll 8
            for (int p = 0; p < 2 * PARTS; p++) {
                Doubles product = widened(values + c * plane + p * HALF) * weight[i];
                ROUNDED(product);
                sums[c][p] += product;
            }
    for (int c = 0; c < COUNT; c++)
        for (int p = 0; p < 2 * PARTS; p++)
            *(UnalignedFloats*)(result + c * STRIP + p * HALF) = __builtin_convertvector(sums[c][p], Floats);
}

// 16 pixels of each of 16 rows: turned[(channel·width + pixel)·16 + row].
template <int CHANNELS>
INLINE void turn(const uint8_t* rows, int64_t pitch, int64_t width, int pixels, float top, float* turned) {
    Bytes columns[2 * CHANNELS * STRIP];
    for (int i = 0; i < 2 * CHANNELS; i++) transpose(rows + i * STRIP, pitch, columns + i * STRIP);
    for (int channel = 0; channel < CHANNELS; channel++)
        for (int i = 0; i < pixels; i++) {
            const Bytes* pixel = columns + 2 * (i * CHANNELS + channel);
            UnalignedEightFloats* at = (UnalignedEightFloats*)(turned + (channel * width + i) * STRIP);
            at[0] = __builtin_convertvector((Words)lower(pixel[0], pixel[1]), EightFloats) / top;
            at[1] = __builtin_convertvector((Words)upper(pixel[0], pixel[1]), EightFloats) / top;
        }
}

template <int CHANNELS> INLINE void turn_rows(const uint8_t* rows, int64_t pitch, int width, float top, float* turned) {
    for_blocks<2 * CHANNELS>(rows, pitch, width, [=](const uint8_t* block, int64_t block_pitch, int x) {
        turn<CHANNELS>(block, block_pitch, width, width - x < STRIP ? width - x : STRIP, top,
                       turned + (int64_t)x * STRIP);
    });
}

// See interface.h.
void turn_strip_16(const uint8_t* rows, int64_t pitch, int32_t width, int32_t channels, float top, float* turned) {
    if (channels == 1)
        turn_rows<1>(rows, pitch, width, top, turned);
    else
        turn_rows<3>(rows, pitch, width, top, turned);
}

// One output of COUNT channels, from `channel` on; see interface.h.
template <int COUNT>
INLINE void resample_output(const struct spr_weights* weights, int output, int channel, const float* turned,
                            int64_t width, float* planes, int64_t pitch) {
    float sums[COUNT * STRIP];
    weighted<COUNT>(weights, output, turned + channel * width * STRIP, STRIP, width * STRIP, sums);
    for (int c = 0; c < COUNT; c++) {
        float* at = planes + (int64_t)(channel + c) * weights->outputs + output;
        for (int row = 0; row < STRIP; row++) at[row * pitch] = sums[c * STRIP + row];
    }
}

// See interface.h.
void resample_strip_16(const struct spr_weights* weights, const float* turned, int32_t width, int32_t channels,
                       float* planes, int64_t pitch) {
    for (int output = 0; output < weights->outputs; output++)
        if (channels == SUMS_AT_ONCE)
            resample_output<SUMS_AT_ONCE>(weights, output, 0, turned, width, planes, pitch);
        else
            for (int channel = 0; channel < channels; channel++)
                resample_output<1>(weights, output, channel, turned, width, planes, pitch);
}

// See interface.h.
void resample_row_16(const struct spr_weights* weights, int32_t output, const float* rows, int64_t pitch,
                     float* result) {
    int64_t lane = 0;
    for (; lane + SUMS_AT_ONCE * STRIP <= pitch; lane += SUMS_AT_ONCE * STRIP)
        weighted<SUMS_AT_ONCE>(weights, output, rows + lane, pitch, STRIP, result + lane);
    for (; lane < pitch; lane += STRIP) weighted<1>(weights, output, rows + lane, pitch, STRIP, result + lane);
}

}  // namespace
