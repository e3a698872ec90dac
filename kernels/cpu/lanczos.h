// The weights of Lanczos' filter from the pixels of a side to another number of pixels.
#pragma once

#include <stdint.h>

#include <memory>
#include <vector>

#include "interface.h"
#include "recent.h"

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

// Those that were used last: making one takes as long as shrinking some hundred rows.
class Filters {
public:
    std::shared_ptr<const Lanczos> exact(int size, int outputs);
    std::shared_ptr<const FixedLanczos> fixed(int size, int outputs);

private:
    static constexpr size_t KEPT = 4;  // both sides of the frames of two cameras

    Recent<Lanczos> exact_{KEPT};
    Recent<FixedLanczos> fixed_{KEPT};
};

}  // namespace sprfast
