// The register kernel: ROWS tiles times PANEL output channels.
#pragma once

#include "simd.h"

namespace {

// out[row][PANEL] = sum over k of in[k / CHUNK][row][k % CHUNK] · weight[k][PANEL]
//
// chunk_stride: floats from one chunk of `in` to the next. Every element is one chain of fused multiply-adds
// in the order of k, whatever ROWS_ is, so a result does not depend on what it is computed with.
template <int ROWS_>
static void block(const float* in, int64_t chunk_stride, int chunks, const float* weight, float* out) {
    Vec sum[ROWS_][2];
#pragma GCC unroll 16
    for (int r = 0; r < ROWS_; r++) sum[r][0] = sum[r][1] = Vec{};
    for (int c = 0; c < chunks; c++, in += chunk_stride)
#pragma GCC unroll 2
        for (int k = 0; k < CHUNK; k++, weight += PANEL) {
            const Vec left = load(weight), right = load(weight + LANES);
#pragma GCC unroll 16
            for (int r = 0; r < ROWS_; r++) {
                const Vec x = broadcast(in[r * CHUNK + k]);
                sum[r][0] += x * left;
                sum[r][1] += x * right;
            }
        }
#pragma GCC unroll 16
    for (int r = 0; r < ROWS_; r++) {
        store(out + r * PANEL, sum[r][0]);
        store(out + r * PANEL + LANES, sum[r][1]);
    }
}

template <int ROWS_>
static void block_of(int rows, const float* in, int64_t chunk_stride, int chunks, const float* weight, float* out) {
    if constexpr (ROWS_ > 0) {
        if (rows == ROWS_)
            block<ROWS_>(in, chunk_stride, chunks, weight, out);
        else
            block_of<ROWS_ - 1>(rows, in, chunk_stride, chunks, weight, out);
    }
}

// `rows` rows in blocks of as equal size as can be.
static void multiply(int rows, const float* in, int64_t chunk_stride, int chunks, const float* weight, float* out) {
    for (int blocks = (rows + ROWS - 1) / ROWS; blocks > 0; blocks--) {
        const int take = (rows + blocks - 1) / blocks;
        block_of<ROWS>(take, in, chunk_stride, chunks, weight, out);
        in += take * CHUNK;
        out += take * PANEL;
        rows -= take;
    }
}

}  // namespace
