// The register kernel of bfloat16: 32 positions times 32 output channels, on the processor's tiles or in plain loops
// that give the same bits.
//
// A tile has 16 rows of 64 bytes. For each pair of input channels, a tile of weights has the pair of each of 16 output
// channels. TDPBF16PS sums products of even and of odd channels in two chains, and adds the sum of both to its result
// (Intel's manual, volume 2). Products of two bfloat16 are exact in float32, so a plain multiply-add has the same bits,
// but for sums below 1e-37, where tiles round to zero.
#pragma once

#include "bfloat16.h"
#include "interface.h"

#ifdef SPR_AMX
#include <immintrin.h>
#endif

namespace {

constexpr int POSITIONS = 32, OUTPUTS_OF_PANEL = 32, TILE_SIDE = 16;
constexpr int SUMS = POSITIONS * OUTPUTS_OF_PANEL;        // float32 of a register block
constexpr int TILE_ELEMENTS = 2 * TILE_SIDE * TILE_SIDE;  // bfloat16 of a tile
constexpr int TAP_ELEMENTS = CHUNK * OUTPUTS_OF_PANEL;    // of a tap's weights for one chunk: two tiles
static_assert(CHUNK == 2 * TILE_SIDE, "a row of a tile is a chunk of one pixel");

// sums[POSITIONS][OUTPUTS_OF_PANEL] of one chunk of input channels, added to those that are there or, for the `first`
// chunk, to zero. Position i reads pixel i + offsets[tap] of in[pixel][CHUNK]; the taps are added in their order.

#ifdef SPR_AMX

// The thread's tiles are usable while it exists.
struct Tiles {
    Tiles() {
        struct alignas(64) {
            uint8_t palette = 1, start_row = 0, reserved[14] = {};
            uint16_t bytes_of_row[16] = {64, 64, 64, 64, 64, 64, 64, 64};
            uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
        } const shape;
        _tile_loadconfig(&shape);
    }
    ~Tiles() { _tile_release(); }
    Tiles(const Tiles&) = delete;
    Tiles& operator=(const Tiles&) = delete;
};

static void multiply_tiles(const BFloat16* in, const int* offsets, int taps, const BFloat16* weight, float* sums,
                           bool first) {
    constexpr int pixel = CHUNK * sizeof(BFloat16), row = OUTPUTS_OF_PANEL * sizeof(float);
    float* lower = sums + TILE_SIDE * OUTPUTS_OF_PANEL;
    if (first) {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    } else {
        _tile_loadd(0, sums, row);
        _tile_loadd(1, sums + TILE_SIDE, row);
        _tile_loadd(2, lower, row);
        _tile_loadd(3, lower + TILE_SIDE, row);
    }
    for (int tap = 0; tap < taps; tap++, weight += TAP_ELEMENTS) {
        const BFloat16* from = in + (int64_t)offsets[tap] * CHUNK;
        _tile_loadd(6, weight, pixel);
        _tile_loadd(4, from, pixel);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, weight + TILE_ELEMENTS, pixel);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, from + TILE_SIDE * CHUNK, pixel);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, sums, row);
    _tile_stored(1, sums + TILE_SIDE, row);
    _tile_stored(2, lower, row);
    _tile_stored(3, lower + TILE_SIDE, row);
}

#else

struct Tiles {
    Tiles() {}  // so that one that is not used is no warning
};

constexpr int TOGETHER_ROWS = 4;  // positions that share the weights in registers

// One vector of output channels of a few positions, one tap.
INLINE void multiply_rows(const BFloat16* in, const BFloat16* weight, float* sums) {
    Vec even[TOGETHER_ROWS]{}, odd[TOGETHER_ROWS]{};
    for (int k = 0; k < TILE_SIDE; k++, in += 2, weight += 2 * TILE_SIDE) {
        WordVec pairs;
        memcpy(&pairs, weight, sizeof pairs);
        const Vec low = (Vec)(pairs << 16), high = (Vec)(pairs & 0xffff0000);
#pragma GCC unroll 4
        for (int r = 0; r < TOGETHER_ROWS; r++) {
            uint32_t pair;
            memcpy(&pair, in + r * CHUNK, sizeof pair);
            const WordVec both = pair - WordVec{};
            even[r] += (Vec)(both << 16) * low;
            odd[r] += (Vec)(both & 0xffff0000) * high;
        }
    }
    for (int r = 0; r < TOGETHER_ROWS; r++, sums += OUTPUTS_OF_PANEL) store(sums, load(sums) + (even[r] + odd[r]));
}

static void multiply_tiles(const BFloat16* in, const int* offsets, int taps, const BFloat16* weight, float* sums,
                           bool first) {
    if (first)
        for (int i = 0; i < SUMS; i += LANES) store(sums + i, Vec{});
    for (int tap = 0; tap < taps; tap++)
        for (int position = 0; position < POSITIONS; position += TOGETHER_ROWS)
            for (int output = 0; output < OUTPUTS_OF_PANEL; output += LANES) {
                const int tile = output / TILE_SIDE, column = output % TILE_SIDE;
                multiply_rows(in + (int64_t)(offsets[tap] + position) * CHUNK,
                              weight + tap * TAP_ELEMENTS + tile * TILE_ELEMENTS + 2 * column,
                              sums + position * OUTPUTS_OF_PANEL + output);
            }
}

#endif

}  // namespace
