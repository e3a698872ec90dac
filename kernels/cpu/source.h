// A patch of a convolution's input: activated, pooled or upsampled from raw maps, into a small buffer.
#pragma once

#include "bfloat16.h"
#include "interface.h"
#include "simd.h"

namespace {

// Rows [top, top + rows) and columns [left, left + columns) of a map, which may lie outside it.
struct Patch {
    int top, left, rows, columns;
};

constexpr int STEPS = CHUNK / LANES;  // vectors in a chunk
// Pixels that are asked for before they are needed: a chunk's pixels lie apart, which defeats prefetching by hardware.
constexpr int AHEAD = 16;

// One chunk of channels of one sample of a source.
struct Chunk {
    const float* raw;
    const float *a, *b, *embedding;  // of the chunk; embedding may be null
    int height, width, stride;       // stride: channels of the source

    INLINE const float* at(int y, int x) const { return raw + ((int64_t)y * width + x) * stride; }

    // Asks for a pixel of this chunk, which may lie beyond the map: asking never faults.
    INLINE void prefetch(int y, int x) const {
        const uintptr_t address = (uintptr_t)raw + (((int64_t)y * width + x) * stride) * sizeof(float);
        for (int i = 0; i < CHUNK; i += 16) __builtin_prefetch((const float*)address + i);
    }
};

// The affine and the embedding of a chunk in registers.
struct Activation {
    Vec a[STEPS], b[STEPS], e[STEPS];

    INLINE explicit Activation(const Chunk& c) {
        for (int s = 0; s < STEPS; s++) {
            a[s] = load(c.a + s * LANES);
            b[s] = load(c.b + s * LANES);
            e[s] = c.embedding ? load(c.embedding + s * LANES) : Vec{};
        }
    }

    INLINE Vec normalised(const float* pixel, int s) const { return load(pixel + s * LANES) * a[s] + b[s]; }

    INLINE Vec swished(const float* pixel, int s) const { return swish(normalised(pixel, s)); }
};

INLINE Chunk chunk_of(const spr_source& s, int sample, int draws, int channel) {
    return {s.raw + (int64_t)sample * s.height * s.width * s.channels + channel,
            s.affine + (int64_t)sample * 2 * s.channels + channel,
            s.affine + ((int64_t)sample * 2 + 1) * s.channels + channel,
            s.embedding ? s.embedding + (int64_t)(sample % draws) * s.channels + channel : nullptr,
            s.height,
            s.width,
            s.channels};
}

template <class Element> INLINE void clear(Element* out, int pixels) {
    for (int i = 0; i < pixels * STEPS; i++) store(out + i * LANES, Vec{});
}

// Columns [left, right) of row y, activated; in float32 or bfloat16, as what follows.
template <class Element> static void activate(const Chunk& c, int y, int left, int right, Element* out) {
    const Activation activation(c);
    for (int x = left; x < right; x++, out += CHUNK) {
        const int next = x + AHEAD < right ? 0 : 1;  // row
        c.prefetch(y + next, x + AHEAD - next * (right - left));
        for (int s = 0; s < STEPS; s++) store(out + s * LANES, activation.swished(c.at(y, x), s) + activation.e[s]);
    }
}

// Columns [left, right) of row y of the pooled map.
template <class Element> static void activate_pooled(const Chunk& c, int y, int left, int right, Element* out) {
    const Activation activation(c);
    for (int x = left; x < right; x++, out += CHUNK) {
        const int next = x + AHEAD / 2 < right ? 0 : 1;  // row
        for (int i = 0; i < 4; i++) c.prefetch(2 * (y + next) + i / 2, 2 * (x - next * (right - left)) + i % 2 + AHEAD);
        for (int s = 0; s < STEPS; s++) {
            Vec low = activation.normalised(c.at(2 * y, 2 * x), s), high = low;
            for (int i = 1; i < 4; i++) {
                const Vec v = activation.normalised(c.at(2 * y + i / 2, 2 * x + i % 2), s);
                low = minimum(low, v);
                high = maximum(high, v);
            }
            // swish falls and then rises: it is largest at one of the ends
            store(out + s * LANES, maximum(swish(low), swish(high)) + activation.e[s]);
        }
    }
}

// Where output index i of an upsampling to 2n lies between inputs: at `from` and `from + next`, the second with
// `weight`.
struct Between {
    int from, next;
    float weight;
};
INLINE Between between(int i, int n) {
    const double at = (double)i * (n - 1) / (2 * n - 1);  // in float, its error would exceed all others of a large map
    const int from = (int)at;
    return {from, from + 1 < n ? 1 : 0, (float)(at - from)};
}

// As `fill`, the rows and columns that exist in the upsampled map; `scratch` holds the activated inputs.
template <class Element>
static void upsample(const Chunk& c, const Patch& p, int top, int bottom, int left, int right, Element* out,
                     float* scratch) {
    const int first_row = between(top, c.height).from, first_column = between(left, c.width).from;
    const Between last_row = between(bottom - 1, c.height), last_column = between(right - 1, c.width);
    const int rows = last_row.from + last_row.next + 1 - first_row;
    const int columns = last_column.from + last_column.next + 1 - first_column;
    for (int r = 0; r < rows; r++)
        activate(c, first_row + r, first_column, first_column + columns, scratch + (int64_t)r * columns * CHUNK);
    for (int y = top; y < bottom; y++) {
        const Between v = between(y, c.height);
        const float* upper = scratch + (int64_t)(v.from - first_row) * columns * CHUNK;
        const float* lower = upper + (int64_t)v.next * columns * CHUNK;
        Element* row = out + ((int64_t)(y - p.top) * p.columns + (left - p.left)) * CHUNK;
        for (int x = left; x < right; x++, row += CHUNK) {
            const Between h = between(x, c.width);
            const int here = (h.from - first_column) * CHUNK, there = here + h.next * CHUNK;
            for (int s = 0; s < STEPS; s++) {
                const Vec w = broadcast(h.weight);
                const Vec u = load(upper + here + s * LANES), l = load(lower + here + s * LANES);
                const Vec above = u + w * (load(upper + there + s * LANES) - u);
                const Vec below = l + w * (load(lower + there + s * LANES) - l);
                store(row + s * LANES, above + v.weight * (below - above));
            }
        }
    }
}

// Fills out[rows][columns][CHUNK] with channels [channel, channel + CHUNK) of a sample; zero outside the map of
// height x width.
template <class Element>
static void fill(const spr_source& s, int sample, int draws, int channel, int height, int width, const Patch& p,
                 Element* out, float* scratch) {
    const Chunk c = chunk_of(s, sample, draws, channel);
    // an upsampled map may be one row or column smaller than the map it is padded to
    const int rows = s.kind == SPR_UPSAMPLED ? 2 * s.height : height;
    const int columns = s.kind == SPR_UPSAMPLED ? 2 * s.width : width;
    const int top = p.top < 0 ? 0 : p.top, left = p.left < 0 ? 0 : p.left;
    const int bottom = p.top + p.rows < rows ? p.top + p.rows : rows;
    const int right = p.left + p.columns < columns ? p.left + p.columns : columns;
    if (top >= bottom || left >= right) {
        clear(out, p.rows * p.columns);
        return;
    }
    clear(out, (top - p.top) * p.columns);
    for (int y = top; y < bottom; y++) {
        Element* row = out + (int64_t)(y - p.top) * p.columns * CHUNK;
        clear(row, left - p.left);
        clear(row + (int64_t)(right - p.left) * CHUNK, p.left + p.columns - right);
        if (s.kind == SPR_ACTIVATION) activate(c, y, left, right, row + (left - p.left) * CHUNK);
        if (s.kind == SPR_POOLED) activate_pooled(c, y, left, right, row + (left - p.left) * CHUNK);
    }
    if (s.kind == SPR_UPSAMPLED) upsample(c, p, top, bottom, left, right, out, scratch);
    clear(out + (int64_t)(bottom - p.top) * p.columns * CHUNK, (p.top + p.rows - bottom) * p.columns);
}

}  // namespace
