// Lanczos' resampling with antialias, bit for bit as Pillow computes it: along the rows, then along the columns, each
// pass left out where its side keeps its size.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include <vector>

#include "interface.h"

namespace sprfast {

// The weights from the pixels of a side to another number of pixels, the same share of the side under each.
class Lanczos {
public:
    Lanczos(int size, int outputs);

    int outputs() const { return static_cast<int>(first_.size()); }
    int first(int output) const { return first_[output]; }  // pixel with a weight
    int count(int output) const { return count_[output]; }  // of such pixels
    const double* weights(int output) const { return &weights_[static_cast<size_t>(output) * stride_]; }
    int most() const { return stride_; }  // that `count` can be

private:
    int stride_;
    std::vector<int> first_, count_;
    std::vector<double> weights_;
};

// Rows of interleaved pixels.
struct Rows {
    const uint8_t* data;
    int64_t pitch;  // bytes
    int height, width, channels;
};

// Both: pixels: one plane (rows, columns) in [-1, 1] a channel.

// 8 bits, between the passes and behind them too.
void resize_8_bit(const Rows& source, const spr_operators* operators, int rows, int columns, float* pixels);

// 16 bits divided by `top`: weighted sums in double, stored as float32, clipped at the end.
void resize_16_bit(const Rows& source, int top, int rows, int columns, float* pixels);

}  // namespace sprfast
