// The fused convolution in bfloat16: activate and round into a padded patch, multiply each of the nine taps, and
// collect GroupNorm's statistics from the sums in float32.
//
// A block is a band of rows of one sample. Its patch has one pixel of border, and the sums lie on the same grid, so
// that a tap is an offset: 32 neighbours in the patch are 32 neighbours in the sums, and what falls on the border is
// left out in the end. A panel of outputs takes one chunk of inputs after the other, whose weights (18 KiB) stay in the
// first-level cache for all positions. A thread has blocks of its own. Small maps, and blocks that are left over, are
// worked on by all threads together, each with panels of its own.
#pragma once

#include "bfloat16.h"
#include "interface.h"
#include "normalise.h"
#include "source.h"
#include "team.h"
#include "tiles.h"

namespace {

constexpr int TAPS_OF_3X3 = 9;
constexpr int64_t PATCH_BYTES = 1 << 20;  // of a block, about: half of the second-level cache where there are tiles
constexpr int LEAST_BAND = 4;             // rows of a block, where the map has them
constexpr int SMALL_MAP = 1024;           // pixels; below, the weights of a layer are more than its maps

struct Bands {
    int rows, down;  // of a block; blocks of a sample
    int columns;     // of a patch
    bool together;   // all threads work on all blocks together, `step` of them at a time
    int step;
    int runs;         // of POSITIONS, of a block
    int64_t patch;    // elements of one chunk of a block
    int64_t scratch;  // floats that filling it needs

    INLINE int top(int block) const { return block * rows; }
    INLINE int rows_of(int block, int height) const { return block < down - 1 ? rows : height - top(block); }
};

static Bands bands_of(const spr_conv3x3& c) {
    const auto up = [](int a, int b) { return (a + b - 1) / b; };
    Bands b{};
    b.columns = c.width + 2;
    const int64_t fitting = PATCH_BYTES / ((int64_t)b.columns * c.channels_in * (int64_t)sizeof(BFloat16)) - 2;
    const int most = fitting < LEAST_BAND ? LEAST_BAND : fitting < c.height ? (int)fitting : c.height;
    b.down = up(c.height, most);
    b.rows = up(c.height, b.down);
    b.down = up(c.height, b.rows);
    const int positions = b.rows * b.columns - 2;  // the last two lie on the border
    b.runs = up(positions, POSITIONS);
    // a last run reads beyond the last row
    b.patch = ((int64_t)b.runs * POSITIONS + 2 * b.columns + 2) * CHUNK;
    b.scratch = ((int64_t)(b.rows + 2) / 2 + 3) * (c.width / 2 + 2) * CHUNK;
    b.together = b.down == 1 && c.height * c.width < SMALL_MAP;
    b.step = b.together ? up(SMALL_MAP, c.height * c.width) : 1;
    if (b.step > c.samples) b.step = c.samples;
    return b;
}

// Memory, in floats: statistics of all blocks; of each thread scratch, the sums of a step and, unless it works with the
// others alone, a patch; the patches of a step for all threads.
static int64_t patch_size(const spr_conv3x3& c, const Bands& b) { return (c.channels_in / CHUNK * b.patch + 1) / 2; }
static int64_t sums_size(const Bands& b) { return (int64_t)b.step * b.runs * SUMS; }
static int64_t own_size(const spr_conv3x3& c, const Bands& b) {
    return b.scratch + sums_size(b) + (b.together ? 0 : patch_size(c, b));
}
static int64_t stats_size(const spr_conv3x3& c, const Bands& b) {
    return (int64_t)c.samples * b.down * 2 * c.channels_out;
}

static int64_t direct3x3_space(const spr_conv3x3* c, int threads) {
    const Bands b = bands_of(*c);
    return stats_size(*c, b) + threads * own_size(*c, b) + b.step * patch_size(*c, b);
}

// A convolution at work: one thread's view.
struct Direct {
    const spr_conv3x3& c;
    const Bands& b;
    float *stats, *scratch, *sums;
    BFloat16* patches;  // [block of the step][chunk][pixel][CHUNK]
    int chunks, panels;

    Direct(const spr_conv3x3& given, const Bands& bands, float* space, const Team& team, bool together)
        : c(given),
          b(bands),
          stats(space),
          scratch(space + stats_size(c, b) + team.thread * own_size(c, b)),
          sums(scratch + b.scratch),
          patches(
              (BFloat16*)(together ? space + stats_size(c, b) + team.threads * own_size(c, b) : sums + sums_size(b))),
          chunks(c.channels_in / CHUNK),
          panels(c.channels_out / OUTPUTS_OF_PANEL) {}

    INLINE BFloat16* patch(int of_step, int chunk) const {
        return patches + ((int64_t)of_step * chunks + chunk) * b.patch;
    }

    // One chunk of channels of one block, activated and rounded.
    void fill_patch(const spr_source* source, int block, BFloat16* out, int chunk) const {
        const int sample = block / b.down, band = block % b.down, rows = b.rows_of(band, c.height);
        int channel = chunk * CHUNK;
        while (channel >= source->channels) channel -= (source++)->channels;
        fill(*source, sample, c.draws, channel, c.height, c.width, {b.top(band) - 1, -1, rows + 2, b.columns}, out,
             scratch);
        const int64_t filled = (int64_t)(rows + 2) * b.columns;
        clear(out + filled * CHUNK, (int)(b.patch / CHUNK - filled));
    }

    // One panel of output channels of `count` blocks.
    void multiply_panel(int panel, int count) const {
        int offsets[TAPS_OF_3X3];
        for (int tap = 0; tap < TAPS_OF_3X3; tap++) offsets[tap] = tap / 3 * b.columns + tap % 3;
        const BFloat16* weight = (const BFloat16*)c.weight + (int64_t)panel * chunks * TAPS_OF_3X3 * TAP_ELEMENTS;
        for (int chunk = 0; chunk < chunks; chunk++, weight += TAPS_OF_3X3 * TAP_ELEMENTS)
            for (int i = 0; i < count * b.runs; i++)
                multiply_tiles(patch(i / b.runs, chunk) + (int64_t)(i % b.runs) * POSITIONS * CHUNK, offsets,
                               TAPS_OF_3X3, weight, sums + (int64_t)i * SUMS, chunk == 0);
    }

    // The panel's results of a block into raw, statistics into the block's. The first row's mean is their shift.
    void put_panel(int panel, int block, const float* from, float* raw) const {
        const int sample = block / b.down, band = block % b.down, rows = b.rows_of(band, c.height);
        for (int i = 0; i < OUTPUTS_OF_PANEL; i += LANES) {
            const int channel = panel * OUTPUTS_OF_PANEL + i;
            float* to = raw + ((int64_t)sample * c.height + b.top(band)) * c.width * c.channels_out + channel;
            Vec first{};
            for (int x = 0; x < c.width; x++) first += load(from + (int64_t)x * OUTPUTS_OF_PANEL + i);
            Moments moments{first * (1.0f / (float)c.width), {}, {}};
            for (int y = 0; y < rows; y++) {
                const float* row = from + (int64_t)y * b.columns * OUTPUTS_OF_PANEL + i;
                Moments here{moments.shift, {}, {}};
                for (int x = 0; x < c.width; x++, row += OUTPUTS_OF_PANEL, to += c.channels_out) {
                    const Vec value = load(row);
                    store(to, value);
                    here.add(value);
                }
                moments.add(here);
            }
            moments.finish(rows * c.width, stats + (int64_t)block * 2 * c.channels_out + channel, c.channels_out);
        }
    }

    // Blocks [first, first + count) of all samples, by one thread or, with barriers, by the team.
    void step(const spr_source* sources, int first, int count, const Team& team, float* raw) const {
        for (int i = team.begin(count * chunks); i < team.end(count * chunks); i++)
            fill_patch(sources, first + i / chunks, patch(i / chunks, i % chunks), i % chunks);
        team.meet();
        for (int panel = team.begin(panels); panel < team.end(panels); panel++) {
            multiply_panel(panel, count);
            for (int i = 0; i < count; i++) put_panel(panel, first + i, sums + (int64_t)i * b.runs * SUMS, raw);
        }
        team.meet();
    }
};

static void direct3x3(const spr_conv3x3* given, const spr_source* sources, float* raw, float* affine, float* space,
                      const spr_threads* threads) {
    const spr_conv3x3& c = *given;
    const Bands b = bands_of(c);
    const int all = c.samples * b.down;
    const Norm norm{c.channels_out, c.groups, c.bias, c.gamma, c.beta};
    in_parallel(*threads, [&](const Team& whole) {
        const Tiles tiles;
        const Team alone{0, 1};
        const int apart = b.together ? 0 : all - all % whole.threads;
        const Direct own(c, b, space, whole, false), shared(c, b, space, whole, true);
        for (int i = whole.begin(apart); i < whole.end(apart); i++) own.step(sources, i, 1, alone, raw);
        for (int i = apart; i < all; i += b.step)
            shared.step(sources, i, b.step < all - i ? b.step : all - i, whole, raw);
        whole.meet();
        for (int i = whole.begin(c.samples * c.groups); i < whole.end(c.samples * c.groups); i++) {
            const int sample = i / c.groups;
            normalise(
                norm, i % c.groups, space + (int64_t)sample * b.down * 2 * c.channels_out, b.down,
                [&](int band) { return b.rows_of(band, c.height) * c.width; },
                affine + (int64_t)sample * 2 * c.channels_out);
        }
    });
}

// Floats that hold the packed weights.
static int64_t direct3x3_weights(int channels_in, int channels_out) {
    return ((int64_t)TAPS_OF_3X3 * channels_in * channels_out + 1) / 2;
}

// packed[panel][chunk][tap][tile][pair][output][2] in bfloat16.
static void pack_direct3x3(const float* weight, int channels_in, int channels_out, float* packed) {
    BFloat16* to = (BFloat16*)packed;
    for (int panel = 0; panel < channels_out; panel += OUTPUTS_OF_PANEL)
        for (int chunk = 0; chunk < channels_in; chunk += CHUNK)
            for (int tap = 0; tap < TAPS_OF_3X3; tap++)
                for (int tile = 0; tile < OUTPUTS_OF_PANEL; tile += TILE_SIDE)
                    for (int pair = 0; pair < CHUNK; pair += 2)
                        for (int output = 0; output < TILE_SIDE; output++)
                            for (int k = 0; k < 2; k++, to++) {
                                const int o = panel + tile + output, i = chunk + pair + k;
                                *to = to_bfloat16(weight[((int64_t)o * channels_in + i) * TAPS_OF_3X3 + tap]);
                            }
}

}  // namespace
