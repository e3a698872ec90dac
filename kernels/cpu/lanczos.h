// The weights of Lanczos' filter from the pixels of a side to another number of pixels.
#pragma once

#include <stdint.h>

#include <vector>

#include "interface.h"

namespace sprfast {

// In double, of sum 1; the filter is as wide as three pixels of the smaller side.
class Lanczos {
public:
    Lanczos(int size, int outputs);

    spr_weights weights() const;

private:
    int32_t stride_, overlap_ = 1;
    std::vector<int32_t> first_, count_;
    std::vector<double> weights_;
};

// The same with 22 fractional bits.
class FixedLanczos {
public:
    FixedLanczos(int size, int outputs);

    spr_taps taps() const;

private:
    int32_t stride_;
    std::vector<int32_t> first_, count_;
    std::vector<uint32_t> low_, high_;
};

}  // namespace sprfast
