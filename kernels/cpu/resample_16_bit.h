// The two passes of a resampling of 16 bits: pixels as float32 in [0, 1], weighted sums of them in double.
//
// A sum has one order, from the first pixel to the last, and each product is rounded before it is added. Lanes are as
// in resample_8_bit.h.
#pragma once

#include <stdint.h>

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

// The 16 lanes of one output. values: of its first pixel, `pitch` to the next one's.
INLINE void weighted(const spr_weights* weights, int output, const float* values, int64_t pitch, float* result) {
    const double* weight = weights->weights + (int64_t)output * weights->stride;
    values += weights->first[output] * pitch;
    Doubles sums[2 * PARTS] = {};
    for (int i = 0; i < weights->count[output]; i++, values += pitch)
        for (int p = 0; p < 2 * PARTS; p++) {
            Doubles product =
                __builtin_convertvector(*(const UnalignedFloats*)(values + p * HALF), Doubles) * weight[i];
            ROUNDED(product);
            sums[p] += product;
        }
    for (int p = 0; p < 2 * PARTS; p++)
        *(UnalignedFloats*)(result + p * HALF) = __builtin_convertvector(sums[p], Floats);
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

// See interface.h.
void resample_strip_16(const struct spr_weights* weights, const float* turned, int32_t width, int32_t channels,
                       float* planes, int64_t pitch) {
    for (int channel = 0; channel < channels; channel++)
        for (int output = 0; output < weights->outputs; output++) {
            float sums[STRIP];
            weighted(weights, output, turned + (int64_t)channel * width * STRIP, STRIP, sums);
            float* at = planes + (int64_t)channel * weights->outputs + output;
            for (int row = 0; row < STRIP; row++) at[row * pitch] = sums[row];
        }
}

// See interface.h.
void resample_row_16(const struct spr_weights* weights, int32_t output, const float* rows, int64_t pitch,
                     float* result) {
    for (int64_t lane = 0; lane < pitch; lane += STRIP) weighted(weights, output, rows + lane, pitch, result + lane);
}

}  // namespace
