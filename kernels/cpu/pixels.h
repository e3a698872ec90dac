// From a frame in memory to the network's input, bit for bit what sprfast/data/images.py makes of the same array.
#pragma once

#include <stdint.h>

#include <utility>

#include "export_file.h"
#include "interface.h"
#include "lanczos.h"

namespace sprfast {

// Colour is interleaved; grey fills three equal channels. 16 bits are in the machine's own byte order and need no
// alignment.
enum class PixelFormat { grey8, grey16, rgb8, bgr8, rgb16, bgr16 };

struct Frame {
    const void* data;
    int64_t bytes;  // that may be read; the last row needs no padding
    int height, width;
    int64_t pitch;  // bytes from one row to the next, at least those of a row
    PixelFormat format;
};

// Both throw Failure: Code::invalid_argument for a frame that describes no memory, Code::bad_image for a picture that
// the preprocessing refuses. The texts have no name of the frame in front.

// The (height, width) of the network's input for a frame of this size.
std::pair<int, int> network_size(int height, int width, const Preprocessing& preprocessing);

// pixels: (3, H, W) in [-1, 1], of network_size. A frame of another size goes through Lanczos' filter with antialias,
// 8 bits in fixed point and 16 bits in double precision, both as Pillow computes them.
void network_input(const Frame& frame, const Preprocessing& preprocessing, const spr_operators* operators,
                   Filters& filters, float* pixels);

}  // namespace sprfast
