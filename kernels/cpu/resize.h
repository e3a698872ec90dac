// Lanczos' resampling with antialias, bit for bit as Pillow 13 computes it: along the rows, then along the columns, or
// the other way where the height shrinks by more than twice what the width does. A pass is left out where its side
// keeps its size.
#pragma once

#include <stdint.h>

#include "interface.h"
#include "lanczos.h"

namespace sprfast {

// Rows of interleaved pixels.
struct Rows {
    const uint8_t* data;
    int64_t pitch;  // bytes
    int height, width, channels;
};

// Both: pixels: one plane (rows, columns) in [-1, 1] a channel.

// 8 bits, between the passes and behind them too.
void resize_8_bit(const Rows& source, const spr_operators* operators, Filters& filters, int rows, int columns,
                  float* pixels);

// 16 bits divided by `top`, which is 2^n - 1: weighted sums in double, stored as float32, clipped at the end. Returns
// the bits that any value has.
uint16_t resize_16_bit(const Rows& source, int top, const spr_operators* operators, Filters& filters, int rows,
                       int columns, float* pixels);

}  // namespace sprfast
