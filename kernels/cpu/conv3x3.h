// The fused convolution in float32: activate, transform, multiply, transform back, with GroupNorm's statistics on the
// way.
//
// A sample's tiles are worked on in rectangular blocks. A step takes a run of blocks through all phases: one block, by
// one thread with memory of its own, or several, by all threads together, where the weights are so large that reading
// them costs more than moving tiles between caches. A block that is left over, when each thread has got as many as the
// others, is done together too. Blocks depend on the layer and the cache alone.
#pragma once

#include <unistd.h>

#include "interface.h"
#include "multiply.h"
#include "normalise.h"
#include "simd.h"
#include "source.h"
#include "team.h"
#include "transform.h"

namespace {

INLINE int divide_up(int a, int b) { return (a + b - 1) / b; }
INLINE int least(int a, int b) { return a < b ? a : b; }
INLINE int most(int a, int b) { return a > b ? a : b; }

// A rectangle of tiles of one sample.
struct Block {
    int row, column, rows, columns;  // in tiles
    int offset;                      // tiles of the sample before it

    INLINE int tiles() const { return rows * columns; }
};

struct Layout {
    int rows, columns;              // tiles of a sample
    int block_rows, block_columns;  // tiles of a block, at most
    int down, across;               // blocks of a sample
    bool shared;                    // all threads work on one step together
    int step;                       // blocks
    int64_t in_plane, out_plane;    // floats from one plane of transformed tiles to the next
    int64_t patch;                  // floats

    INLINE int blocks() const { return down * across; }

    INLINE Block block(int index) const {
        const int row = index / across * block_rows, column = index % across * block_columns;
        const int height = least(block_rows, rows - row), width = least(block_columns, columns - column);
        return {row, column, height, width, row * columns + column * height};
    }

    // Pixels of a block in a map of height x width.
    INLINE int pixels(int index, int height, int width) const {
        const Block b = block(index);
        return least(b.rows * TILE, height - b.row * TILE) * least(b.columns * TILE, width - b.column * TILE);
    }
};

// Tiles whose transforms, of at most 128 channels in and out together, fill half of the second-level cache.
static int tiles_in_cache(int channels) {
    const long bytes = sysconf(_SC_LEVEL2_CACHE_SIZE);
    const long fitting = (bytes > 0 ? bytes : 1 << 20) / 2 / (PLANES * least(channels, 128) * (long)sizeof(float));
    return fitting < 12 ? 12 : fitting > 48 ? 48 : (int)fitting;
}

constexpr int SHARED_TILES = 128;  // of a step, at least: each weight that is read is used this often
constexpr int64_t PAD = 16;        // floats; keeps planes off the same sets of a cache

constexpr int64_t ROW_START = 8;  // pixels whose activation takes as long as to begin a row of them

// Blocks of at most `tiles` tiles, each as large as the others where that can be, whose patches take the least work.
static void set_blocks(Layout& l, int tiles) {
    int64_t least_work = INT64_MAX;
    for (int widest = least(l.columns, tiles); widest > 0; widest--) {
        const int across = divide_up(l.columns, widest), columns = divide_up(l.columns, across);
        const int down = divide_up(l.rows, least(l.rows, tiles / columns)), rows = divide_up(l.rows, down);
        const int64_t read_rows = l.rows * TILE + 2 * down, read_columns = l.columns * TILE + (2 + ROW_START) * across;
        if (read_rows * read_columns >= least_work) continue;
        least_work = read_rows * read_columns;
        l.block_rows = rows;
        l.block_columns = columns;
    }
}

static Layout layout_of(const spr_conv3x3& c) {
    Layout l{};
    l.rows = divide_up(c.height, TILE);
    l.columns = divide_up(c.width, TILE);
    const int tiles = tiles_in_cache(c.channels_in + c.channels_out);
    set_blocks(l, tiles);
    l.down = divide_up(l.rows, l.block_rows);
    l.across = divide_up(l.columns, l.block_columns);
    // Per tile, a thread alone reads 1 / tiles of the weights again. Threads together move both transforms once out
    // and in.
    l.shared = (int64_t)c.channels_in * c.channels_out > (int64_t)2 * tiles * (c.channels_in + c.channels_out);
    const int in_block = l.block_rows * l.block_columns;
    l.step = l.shared ? least(c.samples * l.blocks(), divide_up(SHARED_TILES, in_block)) : 1;
    l.in_plane = (int64_t)l.step * in_block * c.channels_in + PAD;
    l.out_plane = (int64_t)l.step * in_block * c.channels_out + PAD;
    l.patch = (int64_t)(l.block_rows * TILE + 2) * (l.block_columns * TILE + 2) * CHUNK;
    return l;
}

// Memory: statistics of all blocks, two patches a thread, transformed tiles a thread or once.
struct Space {
    float *stats, *patch, *scratch, *in, *out;
};
static int64_t stats_size(const spr_conv3x3& c, const Layout& l) {
    return (int64_t)c.samples * l.blocks() * 2 * c.channels_out;
}
static int64_t tiles_size(const Layout& l) { return PLANES * (l.in_plane + l.out_plane); }

static int64_t conv3x3_space(const spr_conv3x3* c, int threads) {
    const Layout l = layout_of(*c);
    return stats_size(*c, l) + threads * 2 * l.patch + (l.shared ? 1 : threads + 1) * tiles_size(l);
}

static Space space_of(const spr_conv3x3& c, const Layout& l, float* space, const Team& team, bool together) {
    float *patches = space + stats_size(c, l), *tiles = patches + team.threads * 2 * l.patch;
    float* patch = patches + team.thread * 2 * l.patch;
    float* in = tiles + (together ? 0 : (team.thread + 1) * tiles_size(l));
    return {space, patch, patch + l.patch, in, in + PLANES * l.in_plane};
}

// A convolution at work: one thread's view. `tiles` of a step lie as in[PLANES][chunk][tile][CHUNK] and
// out[PLANES][panel][tile][PANEL].
struct Work {
    const spr_conv3x3& c;
    const Layout& l;
    Space space;
    int chunks, panels;

    // One chunk of channels of one block, activated and transformed.
    void transform_in(const spr_source* source, int sample, const Block& b, int chunk, int offset, int tiles) const {
        int channel = chunk * CHUNK;
        while (channel >= source->channels) channel -= (source++)->channels;
        const Patch p{b.row * TILE - 1, b.column * TILE - 1, b.rows * TILE + 2, b.columns * TILE + 2};
        fill(*source, sample, c.draws, channel, c.height, c.width, p, space.patch, space.scratch);
        float* out = space.in + ((int64_t)chunk * tiles + offset) * CHUNK;
        for (int i = 0; i < b.tiles(); i++)
            for (int s = 0; s < STEPS; s++, out += LANES) {
                const int64_t corner = (int64_t)(i / b.columns) * TILE * p.columns + i % b.columns * TILE;
                transform_tile(space.patch + corner * CHUNK + s * LANES, p.columns, out);
            }
    }

    INLINE void transform_tile(const float* corner, int columns, float* out) const {
        Vec half[WINDOW][WINDOW];
#pragma GCC unroll 8
        for (int j = 0; j < WINDOW; j++) {
            Vec d[WINDOW], t[WINDOW];
#pragma GCC unroll 8
            for (int i = 0; i < WINDOW; i++) d[i] = load(corner + ((int64_t)i * columns + j) * CHUNK);
            transform_input(d, t);
#pragma GCC unroll 8
            for (int i = 0; i < WINDOW; i++) half[i][j] = t[i];
        }
#pragma GCC unroll 8
        for (int i = 0; i < WINDOW; i++) {
            Vec t[WINDOW];
            transform_input(half[i], t);
#pragma GCC unroll 8
            for (int j = 0; j < WINDOW; j++) store(out + (i * WINDOW + j) * l.in_plane, t[j]);
        }
    }

    // One panel of output channels of one plane.
    void multiply_plane(int plane, int panel, int tiles) const {
        const float* weight = c.weight + ((int64_t)plane * panels + panel) * c.channels_in * PANEL;
        multiply(tiles, space.in + plane * l.in_plane, (int64_t)tiles * CHUNK, chunks, weight,
                 space.out + plane * l.out_plane + (int64_t)panel * tiles * PANEL);
    }

    // One panel of output channels of one block: results into raw, statistics into the block's.
    void transform_out(int sample, int index, int panel, int offset, int tiles, float* raw) const {
        const Block b = l.block(index);
        const int pixels = l.pixels(index, c.height, c.width);
        for (int channel = panel * PANEL; channel < (panel + 1) * PANEL; channel += LANES) {
            const float* tile = space.out + ((int64_t)panel * tiles + offset) * PANEL + channel % PANEL;
            float* map = raw + (int64_t)sample * c.height * c.width * c.channels_out + channel;
            Moments moments{};
            for (int i = 0; i < b.tiles(); i++, tile += PANEL) {
                Vec result[TILE][TILE];
                restore_tile(tile, result);
                const int top = (b.row + i / b.columns) * TILE, left = (b.column + i % b.columns) * TILE;
                const int rows = least(TILE, c.height - top), columns = least(TILE, c.width - left);
                put(result, map + ((int64_t)top * c.width + left) * c.channels_out, rows, columns, i == 0, moments);
            }
            moments.finish(pixels, space.stats + ((int64_t)sample * l.blocks() + index) * 2 * c.channels_out + channel,
                           c.channels_out);
        }
    }

    INLINE void restore_tile(const float* tile, Vec result[TILE][TILE]) const {
        Vec half[TILE][WINDOW];
#pragma GCC unroll 8
        for (int j = 0; j < WINDOW; j++) {
            Vec m[WINDOW], t[TILE];
#pragma GCC unroll 8
            for (int i = 0; i < WINDOW; i++) m[i] = load(tile + (i * WINDOW + j) * l.out_plane);
            transform_output(m, t);
#pragma GCC unroll 8
            for (int i = 0; i < TILE; i++) half[i][j] = t[i];
        }
#pragma GCC unroll 8
        for (int i = 0; i < TILE; i++) transform_output(half[i], result[i]);
    }

    // Writes rows x columns pixels and adds them to the moments; the first tile's mean is their shift.
    INLINE void put(const Vec result[TILE][TILE], float* to, int rows, int columns, bool first,
                    Moments& moments) const {
        if (first) {
            Vec total{};
            for (int i = 0; i < rows; i++)
                for (int j = 0; j < columns; j++) total += result[i][j];
            moments.shift = total * (1.0f / (float)(rows * columns));
        }
        Moments here{moments.shift, {}, {}};
        if (rows == TILE && columns == TILE) {
#pragma GCC unroll 8
            for (int i = 0; i < TILE; i++)
#pragma GCC unroll 8
                for (int j = 0; j < TILE; j++) {
                    store(to + ((int64_t)i * c.width + j) * c.channels_out, result[i][j]);
                    here.add(result[i][j]);
                }
        } else {
            for (int i = 0; i < rows; i++)
                for (int j = 0; j < columns; j++) {
                    store(to + ((int64_t)i * c.width + j) * c.channels_out, result[i][j]);
                    here.add(result[i][j]);
                }
        }
        moments.add(here);
    }

    // Blocks [first, first + count) of all samples, by one thread or, with barriers, by the team.
    void step(const spr_source* sources, int first, int count, const Team& team, float* raw) const {
        const int per_sample = l.rows * l.columns, blocks = l.blocks();
        const auto before = [&](int i) {
            return i / blocks * per_sample + (i % blocks ? l.block(i % blocks).offset : 0);
        };
        const int start = before(first), tiles = before(first + count) - start;
        for (int i = team.begin(count * chunks); i < team.end(count * chunks); i++) {
            const int at = first + i / chunks;
            transform_in(sources, at / blocks, l.block(at % blocks), i % chunks, before(at) - start, tiles);
        }
        team.meet();
        for (int i = team.begin(PLANES * panels); i < team.end(PLANES * panels); i++)
            multiply_plane(i / panels, i % panels, tiles);
        team.meet();
        for (int i = team.begin(count * panels); i < team.end(count * panels); i++) {
            const int at = first + i / panels;
            transform_out(at / blocks, at % blocks, i % panels, before(at) - start, tiles, raw);
        }
    }
};

static void conv3x3(const spr_conv3x3* given, const spr_source* sources, float* raw, float* affine, float* space,
                    const spr_threads* threads) {
    const spr_conv3x3& c = *given;
    const Layout l = layout_of(c);
    const int blocks = l.blocks(), all = c.samples * blocks;
    const Norm norm{c.channels_out, c.groups, c.bias, c.gamma, c.beta};
    in_parallel(*threads, [&](const Team& whole) {
        const Team alone{0, 1};
        const int chunks = c.channels_in / CHUNK, panels = c.channels_out / PANEL;
        const Work together{c, l, space_of(c, l, space, whole, true), chunks, panels};
        const int shared = l.shared ? all : all % whole.threads == 1;  // a single one that is left over
        for (int i = 0; i < shared; i += l.step) together.step(sources, i, least(l.step, shared - i), whole, raw);
        const Work work{c, l, space_of(c, l, space, whole, false), chunks, panels};
        for (int i = shared + whole.begin(all - shared); i < shared + whole.end(all - shared); i++)
            work.step(sources, i, 1, alone, raw);
        whole.meet();
        for (int i = whole.begin(c.samples * c.groups); i < whole.end(c.samples * c.groups); i++) {
            const int sample = i / c.groups;
            normalise(
                norm, i % c.groups, space + (int64_t)sample * blocks * 2 * c.channels_out, blocks,
                [&](int index) { return l.pixels(index, c.height, c.width); },
                affine + (int64_t)sample * 2 * c.channels_out);
        }
    });
}

static int64_t conv3x3_weights(int channels_in, int channels_out) {
    return (int64_t)PLANES * channels_in * channels_out;
}

// Computed in double.
static void pack_conv3x3(const float* weight, int channels_in, int channels_out, float* packed) {
    for (int o = 0; o < channels_out; o++)
        for (int k = 0; k < channels_in; k++) {
            const float* g = weight + ((int64_t)o * channels_in + k) * 9;
            double half[WINDOW][3], u[WINDOW];
            for (int j = 0; j < 3; j++) {
                const double column[3] = {g[j], g[3 + j], g[6 + j]};
                transform_weight(column, u);
                for (int i = 0; i < WINDOW; i++) half[i][j] = u[i];
            }
            for (int i = 0; i < WINDOW; i++) {
                transform_weight(half[i], u);
                for (int j = 0; j < WINDOW; j++) {
                    const int64_t panel = (int64_t)(i * WINDOW + j) * (channels_out / PANEL) + o / PANEL;
                    packed[(panel * channels_in + k) * PANEL + o % PANEL] = (float)u[j];
                }
            }
        }
}

}  // namespace
