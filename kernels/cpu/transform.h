// Winograd's minimal filtering F(4x4, 3x3), one dimension at a time (Winograd 1980; Lavin & Gray 2016).
//
// A tile of 4 results y from 6 inputs d and 3 weights g is y = Aᵀ((G g) * (Bᵀ d)), a polynomial product by evaluation
// and interpolation at 6 points. These are 0, infinity and two pairs ±p, which lets even and odd terms be summed once.
// The usual pairs ±1, ±2 have three times the rounding error of these, which were found by search among eighths.
#pragma once

#include "simd.h"

namespace {

constexpr int TILE = 4;           // results along one dimension
constexpr int WINDOW = TILE + 2;  // inputs
constexpr int PLANES = WINDOW * WINDOW;
constexpr int PAIRS = 2;
constexpr double POINTS[PAIRS] = {0.625, 1.75};
// Exact in float, as are their sum and product.
constexpr double SQUARES[PAIRS] = {POINTS[0] * POINTS[0], POINTS[1] * POINTS[1]};
constexpr float SUM = (float)(SQUARES[0] + SQUARES[1]), PRODUCT = (float)(SQUARES[0] * SQUARES[1]);

// out = Bᵀ d: row i holds the coefficients of the product over all finite points but the i-th of (x - point).
INLINE void transform_input(const Vec* d, Vec* out) {
    out[0] = d[4] - d[2] * SUM + d[0] * PRODUCT;
    out[5] = d[5] - d[3] * SUM + d[1] * PRODUCT;
#pragma GCC unroll 2
    for (int i = 0; i < PAIRS; i++) {
        const float other = (float)SQUARES[1 - i], p = (float)POINTS[i];
        const Vec even = d[4] - d[2] * other, odd = d[3] - d[1] * other;
        out[2 * i + 1] = even + odd * p;
        out[2 * i + 2] = even - odd * p;
    }
}

// y = Aᵀ m: the power basis at the points; infinity has the highest power only.
INLINE void transform_output(const Vec* m, Vec* y) {
    constexpr float p = (float)POINTS[0], q = (float)POINTS[1];
    const Vec even_p = m[1] + m[2], odd_p = m[1] - m[2], even_q = m[3] + m[4], odd_q = m[3] - m[4];
    y[0] = m[0] + even_p + even_q;
    y[1] = odd_p * p + odd_q * q;
    y[2] = even_p * (p * p) + even_q * (q * q);
    y[3] = m[5] + odd_p * (p * p * p) + odd_q * (q * q * q);
}

// u = G g, in double: g's polynomial at the points, over the product of their distances.
inline void transform_weight(const double* g, double* u) {
    const double at[WINDOW - 1] = {0.0, POINTS[0], -POINTS[0], POINTS[1], -POINTS[1]};
    for (int i = 0; i < WINDOW - 1; i++) {
        double distances = 1.0;
        for (int j = 0; j < WINDOW - 1; j++)
            if (j != i) distances *= at[i] - at[j];
        u[i] = (g[0] + at[i] * g[1] + at[i] * at[i] * g[2]) / distances;
    }
    u[WINDOW - 1] = g[2];
}

}  // namespace
