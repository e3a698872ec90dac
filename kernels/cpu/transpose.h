// Blocks of 16 rows turned, so that pixels of different rows lie beside each other.
#pragma once

#include <stdint.h>

#include "simd.h"

namespace {

constexpr int STRIP = 16;             // rows of a block
constexpr int PARTS = STRIP / LANES;  // vectors of a number from every row

typedef uint8_t Bytes __attribute__((vector_size(16)));
typedef uint8_t UnalignedBytes __attribute__((vector_size(16), aligned(1), may_alias));

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
INLINE void transpose(const uint8_t* rows, int64_t pitch, Bytes columns[STRIP]) {
    Bytes turned[STRIP];
    for (int i = 0; i < STRIP; i++) columns[i] = *(const UnalignedBytes*)(rows + i * pitch);
    for (int stage = 0; stage < 4; stage++) {
        for (int i = 0; i < STRIP / 2; i++) {
            turned[2 * i] = lower(columns[i], columns[i + STRIP / 2]);
            turned[2 * i + 1] = upper(columns[i], columns[i + STRIP / 2]);
        }
        for (int i = 0; i < STRIP; i++) columns[i] = turned[i];
    }
}

// `fill` for every block of PIXELS pixels of 16 rows: its rows, the bytes from one to the next, and the first pixel.
// The last block of a width that is no multiple of PIXELS has zeros behind.
template <int PIXELS, int PIXEL_BYTES, typename Fill>
INLINE void for_blocks(const uint8_t* rows, int64_t pitch, int width, Fill fill) {
    int x = 0;
    for (; x + PIXELS <= width; x += PIXELS) fill(rows + (int64_t)x * PIXEL_BYTES, pitch, x);
    if (x == width) return;
    uint8_t rest[STRIP][PIXEL_BYTES * PIXELS] = {};
    for (int row = 0; row < STRIP; row++)
        for (int i = 0; i < (width - x) * PIXEL_BYTES; i++)
            rest[row][i] = rows[row * pitch + (int64_t)x * PIXEL_BYTES + i];
    fill(rest[0], PIXEL_BYTES * PIXELS, x);
}

}  // namespace
