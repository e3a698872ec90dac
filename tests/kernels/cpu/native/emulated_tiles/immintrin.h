// AMX's tiles in plain C, as Intel's manual describes the instructions (volume 2: LDTILECFG, TILELOADD, TILESTORED,
// TILEZERO, TDPBF16PS, TILERELEASE), for processors that have none. What the manual makes a fault ends the program.
#pragma once

#include <emmintrin.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

namespace emulated {

struct Tile {
    int rows, bytes;
    uint8_t data[16][64];
};
static thread_local bool configured = false;
static thread_local Tile tiles[8];

static void require(bool holds, const char* what) {
    if (holds) return;
    fprintf(stderr, "tiles: %s\n", what);
    abort();
}

static Tile& tile(int index) {
    require(configured, "used without a configuration");
    require(index >= 0 && index < 8 && tiles[index].rows > 0, "an index that is not configured");
    return tiles[index];
}

static float widened(const uint8_t* at) {
    uint16_t half;
    memcpy(&half, at, sizeof half);
    const uint32_t bits = (uint32_t)half << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static void load_configuration(const void* from) {
    const uint8_t* bytes = (const uint8_t*)from;
    require(bytes[0] == 1 && bytes[1] == 0, "a palette that is not known, or a load that was interrupted");
    for (int i = 2; i < 16; i++) require(bytes[i] == 0, "reserved bytes that are not zero");
    for (int i = 0; i < 8; i++) {
        uint16_t width;
        memcpy(&width, bytes + 16 + 2 * i, sizeof width);
        tiles[i] = Tile{bytes[48 + i], width, {}};
        require(tiles[i].rows <= 16 && tiles[i].bytes <= 64, "a tile that is too large");
    }
    for (int i = 32; i < 48; i++) require(bytes[i] == 0, "a tile beyond the eighth");
    for (int i = 56; i < 64; i++) require(bytes[i] == 0, "a tile beyond the eighth");
    configured = true;
}

static void load(int index, const void* base, int64_t stride) {
    Tile& t = tile(index);
    memset(t.data, 0, sizeof t.data);
    for (int row = 0; row < t.rows; row++) memcpy(t.data[row], (const uint8_t*)base + row * stride, t.bytes);
}

static void store(int index, void* base, int64_t stride) {
    const Tile& t = tile(index);
    for (int row = 0; row < t.rows; row++) memcpy((uint8_t*)base + row * stride, t.data[row], t.bytes);
}

static void dot(int sums, int left, int right) {
    Tile& c = tile(sums);
    const Tile &a = tile(left), &b = tile(right);
    require(a.rows == c.rows && b.bytes == c.bytes && a.bytes == 4 * b.rows, "sizes that do not fit");
    for (int m = 0; m < c.rows; m++)
        for (int n = 0; n < c.bytes / 4; n++) {
            float even = 0, odd = 0, sum;
            for (int k = 0; k < a.bytes / 4; k++) {
                even += widened(a.data[m] + 4 * k) * widened(b.data[k] + 4 * n);
                odd += widened(a.data[m] + 4 * k + 2) * widened(b.data[k] + 4 * n + 2);
            }
            memcpy(&sum, c.data[m] + 4 * n, sizeof sum);
            sum += even + odd;
            memcpy(c.data[m] + 4 * n, &sum, sizeof sum);
        }
}

static void clear(int index) { memset(tile(index).data, 0, sizeof tiles[index].data); }

}  // namespace emulated

#define _tile_loadconfig(from) emulated::load_configuration(from)
#define _tile_release() (emulated::configured = false)
#define _tile_zero(index) emulated::clear(index)
#define _tile_loadd(index, base, stride) emulated::load(index, base, stride)
#define _tile_stored(index, base, stride) emulated::store(index, base, stride)
#define _tile_dpbf16ps(sums, left, right) emulated::dot(sums, left, right)
