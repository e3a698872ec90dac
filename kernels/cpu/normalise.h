// GroupNorm from statistics that were collected block by block.
#pragma once

#include <math.h>

#include "simd.h"

namespace {

constexpr double EPS = 1e-5;

struct Norm {
    int channels, groups;
    const float *bias, *gamma, *beta;
};

// Sums about a shift that lies among the values, so that nothing is lost where the mean is far above the deviation.
struct Moments {
    Vec shift, total, squares;

    INLINE void add(Vec value) {
        const Vec d = value - shift;
        total += d;
        squares += d * d;
    }

    INLINE void add(const Moments& part) {
        total += part.total;
        squares += part.squares;
    }

    // Mean and sum of squared deviations of `count` values, stored `channels` apart.
    INLINE void finish(int count, float* stats, int channels) const {
        const Vec mean = total * (1.0f / (float)count);
        store(stats, shift + mean);
        store(stats + channels, squares - total * mean);
    }
};

// affine[2][channels] of one group of a sample. stats: per block, mean and sum of squared deviations [2][channels];
// count(i): pixels of block i. Merged in double, in the order of the blocks.
template <class Count>
void normalise(const Norm& norm, int group, const float* stats, int blocks, Count count, float* affine) {
    const int width = norm.channels / norm.groups, first = group * width;
    double total = 0, pixels = 0, spread = 0;
    for (int i = 0; i < blocks; i++) {
        const float* mean = stats + (int64_t)i * 2 * norm.channels;
        for (int c = first; c < first + width; c++) total += count(i) * ((double)mean[c] + norm.bias[c]);
        pixels += count(i);
    }
    const double mean = total / (pixels * width);
    for (int i = 0; i < blocks; i++) {
        const float *means = stats + (int64_t)i * 2 * norm.channels, *deviations = means + norm.channels;
        for (int c = first; c < first + width; c++) {
            const double offset = (double)means[c] + norm.bias[c] - mean;
            spread += deviations[c] + count(i) * offset * offset;
        }
    }
    const double variance = spread / (pixels * width);
    // of an infinite one it would be 0, and every value of the group the finite `beta`
    const double rstd = variance < INFINITY ? 1.0 / sqrt(variance + EPS) : NAN;
    for (int c = first; c < first + width; c++) {
        const double a = norm.gamma[c] * rstd;
        affine[c] = (float)a;
        affine[norm.channels + c] = (float)(norm.beta[c] + (norm.bias[c] - mean) * a);
    }
}

}  // namespace
