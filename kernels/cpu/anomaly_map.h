// The anomaly map: resampling and box filter as one banded matrix on each side of the error map.
//
// Rows of the map are worked on in groups, columns in vectors. What is nonzero in any row of a group (any column of
// a vector) bounds the sums of all of them, so a NaN may show a little beyond the rows and columns that it weighs in.
#pragma once

#include "interface.h"
#include "partial.h"
#include "simd.h"
#include "team.h"

namespace {

constexpr int GROUP = 8;  // rows of a group

// Where rows of a matrix are not all zero.
struct Span {
    int32_t begin, end;
};

struct AnomalyMap {
    int height, width, size;
    const float *errors = nullptr, *rows = nullptr, *columns = nullptr;
    float* maps = nullptr;
    Span *row_spans = nullptr, *column_spans = nullptr;  // by group, by vector
    float* packed = nullptr;                             // [vector][width][LANES]: the transpose of `columns`
    float* filtered = nullptr;                           // rows · errors, (images·size, stride)

    INLINE int groups() const { return (size + GROUP - 1) / GROUP; }
    INLINE int vectors() const { return (size + LANES - 1) / LANES; }
    INLINE int stride() const { return (width + LANES - 1) / LANES * LANES; }

    INLINE Span span_of(const float* matrix, int length, int first, int count) const {
        Span s{length, 0};
        for (int i = first; i < first + count && i < size; i++) {
            const float* row = matrix + (int64_t)i * length;
            int begin = 0, end = length;
            while (begin < s.begin && row[begin] == 0) begin++;
            while (end > s.end && row[end - 1] == 0) end--;
            if (begin < s.begin) s.begin = begin;
            if (end > s.end) s.end = end;
        }
        return s;
    }

    void pack(int vector) const {
        const Span s = column_spans[vector] = span_of(columns, width, vector * LANES, LANES);
        for (int lane = 0; lane < LANES; lane++) {
            const int i = vector * LANES + lane;
            float* out = packed + (int64_t)vector * width * LANES + lane;
            for (int w = s.begin; w < s.end; w++)
                out[(int64_t)w * LANES] = i < size ? columns[(int64_t)i * width + w] : 0;
        }
    }

    // The rows of a group of one image: rows · errors.
    void filter_rows(int image, int group) const {
        const Span s = row_spans[group];
        const float *map = errors + (int64_t)image * height * width, *weight[GROUP];
        for (int i = 0; i < GROUP; i++)
            weight[i] = rows + (int64_t)(group * GROUP + i < size ? group * GROUP + i : size - 1) * height;
        for (int x = 0; x < width; x += LANES) {
            Vec total[GROUP]{};
            for (int y = s.begin; y < s.end; y++) {
                const Vec value = load_part(map + (int64_t)y * width + x, width - x);
#pragma GCC unroll 8
                for (int i = 0; i < GROUP; i++) total[i] += weight[i][y] * value;
            }
            for (int i = 0; i < GROUP && group * GROUP + i < size; i++)
                store(filtered + ((int64_t)image * size + group * GROUP + i) * stride() + x, total[i]);
        }
    }

    // The same rows of the map: filtered · columnsᵀ.
    void filter_columns(int image, int group) const {
        const int64_t first = (int64_t)image * size + group * GROUP;
        const int count = size - group * GROUP < GROUP ? size - group * GROUP : GROUP;
        const float* in[GROUP];
        for (int i = 0; i < GROUP; i++) in[i] = filtered + (first + (i < count ? i : count - 1)) * stride();
        for (int v = 0; v < vectors(); v++) {
            const Span s = column_spans[v];
            const float* weight = packed + (int64_t)v * width * LANES;
            Vec total[GROUP]{};
            for (int x = s.begin; x < s.end; x++) {
                const Vec w = load(weight + (int64_t)x * LANES);
#pragma GCC unroll 8
                for (int i = 0; i < GROUP; i++) total[i] += in[i][x] * w;
            }
            for (int i = 0; i < count; i++)
                store_part(maps + (first + i) * size + v * LANES, total[i], size - v * LANES);
        }
    }
};

static int64_t anomaly_map_space(int images, int height, int width, int size) {
    const AnomalyMap h{height, width, size};
    static_assert(sizeof(Span) == 2 * sizeof(float), "spans lie in floats");
    return 2 * (h.groups() + h.vectors()) + (int64_t)h.vectors() * LANES * width + (int64_t)images * size * h.stride();
}

static void anomaly_map(int images, int height, int width, int size, const float* errors, const float* rows,
                        const float* columns, float* maps, float* space, const spr_threads* threads) {
    AnomalyMap h{height, width, size, errors, rows, columns, maps};
    h.row_spans = (Span*)space;
    h.column_spans = h.row_spans + h.groups();
    h.packed = (float*)(h.column_spans + h.vectors());
    h.filtered = h.packed + (int64_t)h.vectors() * LANES * width;
    const int groups = h.groups();
    in_parallel(*threads, [&](const Team& t) {
        for (int i = t.begin(h.vectors()); i < t.end(h.vectors()); i++) h.pack(i);
        for (int i = t.begin(groups); i < t.end(groups); i++)
            h.row_spans[i] = h.span_of(rows, height, i * GROUP, GROUP);
        t.meet();
        for (int i = t.begin((int64_t)images * groups); i < t.end((int64_t)images * groups); i++) {
            h.filter_rows(i / groups, i % groups);
            h.filter_columns(i / groups, i % groups);
        }
    });
}

}  // namespace
