// The first convolution: direct, of an image that is perturbed on the way, with GroupNorm's statistics.
//
// A block is a band of rows of one sample, so that blocks depend on the shape alone.
#pragma once

#include "interface.h"
#include "normalise.h"
#include "simd.h"
#include "team.h"

namespace {

constexpr int BAND_ROWS = 8;  // rows of a block: its perturbed rows stay in the first-level cache
constexpr int COLORS = 3;
constexpr int TAPS = 9 * COLORS;

// The perturbed rows of a block: at[COLORS][BAND_ROWS + 2][columns], with a border of zeros.
struct Perturbed {
    float* at;
    int rows, columns;  // of the block; with the border
    int taps[TAPS];     // where the inputs of a pixel lie, from the first of them on, in the order of the weight's rows

    Perturbed(float* space, int width) : at(space), rows(0), columns(width + 2), taps{} {
        for (int k = 0; k < TAPS; k++) taps[k] = (k / 9 * (BAND_ROWS + 2) + k / 3 % 3) * columns + k % 3;
    }
};

INLINE int bands_of(const spr_perturb_conv3x3& c) { return (c.height + BAND_ROWS - 1) / BAND_ROWS; }
INLINE int rows_of(const spr_perturb_conv3x3& c, int band) {
    return band < bands_of(c) - 1 ? BAND_ROWS : c.height - band * BAND_ROWS;
}
static int64_t stats_size(const spr_perturb_conv3x3& c) {
    return (int64_t)c.images * c.draws * bands_of(c) * 2 * c.channels_out;
}
static int64_t perturbed_size(const spr_perturb_conv3x3& c) {
    return (int64_t)COLORS * (BAND_ROWS + 2) * (c.width + 2);
}

static int64_t perturb_conv3x3_space(const spr_perturb_conv3x3* c, int threads) {
    return stats_size(*c) + threads * perturbed_size(*c);
}

// image + std·noise of the block that begins at row `top`.
static void perturb(const spr_perturb_conv3x3& c, int sample, int top, const Perturbed& p) {
    const int image = sample / c.draws, draw = sample % c.draws;
    const int64_t noise_map = (int64_t)draw * c.noise_images + (c.noise_images == 1 ? 0 : image);
    const float std = c.std[draw];
    for (int color = 0; color < COLORS; color++)
        for (int y = top - 1; y < top + p.rows + 1; y++) {
            float* out = p.at + (color * (BAND_ROWS + 2) + y - top + 1) * p.columns;
            const bool inside = y >= 0 && y < c.height;
            const float* x = c.image + (((int64_t)image * COLORS + color) * c.height + y) * c.width;
            const float* z = c.noise + ((noise_map * COLORS + color) * c.height + y) * c.width;
            out[0] = out[c.width + 1] = 0;
            for (int i = 0; i < c.width; i++) out[i + 1] = inside ? x[i] + std * z[i] : 0;
        }
}

// PIXELS pixels of row y from column x on, one panel of output channels. Every result is one chain of multiply-adds in
// the order of the weight's rows. Taps come from a table: loops over dx would be unrolled and spill the sums.
template <int PIXELS>
static void convolve(const Perturbed& p, int y, int x, const float* weight, int channels, float* out,
                     Moments* moments) {
    Vec sum[PIXELS][2];
#pragma GCC unroll 16
    for (int i = 0; i < PIXELS; i++) sum[i][0] = sum[i][1] = Vec{};
    const float* corner = p.at + (int64_t)y * p.columns + x;
    for (int k = 0; k < TAPS; k++, weight += channels) {
        const float* in = corner + p.taps[k];
        const Vec left = load(weight), right = load(weight + LANES);
#pragma GCC unroll 16
        for (int i = 0; i < PIXELS; i++) {
            const Vec value = broadcast(in[i]);
            sum[i][0] += value * left;
            sum[i][1] += value * right;
        }
    }
    if (x == 0 && y == 0)  // the mean of a block's first pixels is their shift
        for (int half = 0; half < 2; half++) {
            Vec total{};
#pragma GCC unroll 16
            for (int i = 0; i < PIXELS; i++) total += sum[i][half];
            moments[half].shift = total * (1.0f / PIXELS);
        }
    Moments left{moments[0].shift, {}, {}}, right{moments[1].shift, {}, {}};
#pragma GCC unroll 16
    for (int i = 0; i < PIXELS; i++, out += channels) {
        store(out, sum[i][0]);
        store(out + LANES, sum[i][1]);
        left.add(sum[i][0]);
        right.add(sum[i][1]);
    }
    moments[0].add(left);
    moments[1].add(right);
}

template <int PIXELS>
static void convolve_some(int pixels, const Perturbed& p, int y, int x, const float* weight, int channels, float* out,
                          Moments* moments) {
    if constexpr (PIXELS > 0) {
        if (pixels == PIXELS)
            convolve<PIXELS>(p, y, x, weight, channels, out, moments);
        else
            convolve_some<PIXELS - 1>(pixels, p, y, x, weight, channels, out, moments);
    }
}

// One block: results into `raw`, where it begins, and statistics.
static void convolve_band(const spr_perturb_conv3x3& c, const Perturbed& p, float* raw, float* stats) {
    for (int channel = 0; channel < c.channels_out; channel += PANEL) {
        Moments moments[2]{};
        float* out = raw + channel;
        for (int y = 0; y < p.rows; y++)
            for (int x = 0, blocks = (c.width + ROWS - 1) / ROWS; blocks > 0; blocks--) {
                const int take = (c.width - x + blocks - 1) / blocks;
                convolve_some<ROWS>(take, p, y, x, c.weight + channel, c.channels_out, out, moments);
                out += (int64_t)take * c.channels_out;
                x += take;
            }
        for (int half = 0; half < 2; half++)
            moments[half].finish(p.rows * c.width, stats + channel + half * LANES, c.channels_out);
    }
}

static void perturb_conv3x3(const spr_perturb_conv3x3* given, float* raw, float* affine, float* space,
                            const spr_threads* threads) {
    const spr_perturb_conv3x3& c = *given;
    const int samples = c.images * c.draws, bands = bands_of(c);
    const Norm norm{c.channels_out, c.groups, c.bias, c.gamma, c.beta};
    in_parallel(*threads, [&](const Team& t) {
        Perturbed p(space + stats_size(c) + t.thread * perturbed_size(c), c.width);
        for (int i = t.begin((int64_t)samples * bands); i < t.end((int64_t)samples * bands); i++) {
            const int sample = i / bands, top = i % bands * BAND_ROWS;
            p.rows = rows_of(c, i % bands);
            perturb(c, sample, top, p);
            float* out = raw + ((int64_t)sample * c.height + top) * c.width * c.channels_out;
            convolve_band(c, p, out, space + (int64_t)i * 2 * c.channels_out);
        }
        t.meet();
        for (int i = t.begin((int64_t)samples * c.groups); i < t.end((int64_t)samples * c.groups); i++) {
            const int sample = i / c.groups;
            normalise(
                norm, i % c.groups, space + (int64_t)sample * bands * 2 * c.channels_out, bands,
                [&](int band) { return rows_of(c, band) * c.width; }, affine + (int64_t)sample * 2 * c.channels_out);
        }
    });
}

}  // namespace
