#include "pixels.h"

#include <string.h>

#include <algorithm>
#include <string>

#include "resize.h"

namespace sprfast {

namespace {

constexpr int64_t MAX_INPUT_PIXELS = 4'194'304;       // of the network's input: 2048 x 2048
constexpr int64_t RESIZING_BYTES = int64_t{1} << 26;  // that resizing may take beside 12 for a pixel of the source
constexpr int LONGEST_SIDE = 1'000'000;               // pixels

std::string with_size(int64_t height, int64_t width) { return std::to_string(height) + "x" + std::to_string(width); }

[[noreturn]] void refuse(int height, int width, const std::string& why) {
    throw Failure{Code::bad_image, with_size(height, width) + why};
}

bool is_colour(PixelFormat format) { return format != PixelFormat::grey8 && format != PixelFormat::grey16; }

bool is_bgr(PixelFormat format) { return format == PixelFormat::bgr8 || format == PixelFormat::bgr16; }

bool is_deep(PixelFormat format) {
    return format == PixelFormat::grey16 || format == PixelFormat::rgb16 || format == PixelFormat::bgr16;
}

void check_pixel_count(int height, int width, const Preprocessing& preprocessing) {
    const int64_t count = int64_t{height} * width;
    if (height < 1 || width < 1) refuse(height, width, " pixels (height x width): a picture needs at least one");
    if (count > preprocessing.max_pixels)
        refuse(height, width,
               " (height x width) is " + std::to_string(count) + " pixels, above max_pixels " +
                   std::to_string(preprocessing.max_pixels));
    if (std::max(height, width) > LONGEST_SIDE)
        refuse(height, width, " pixels (height x width): a side may have up to " + std::to_string(LONGEST_SIDE));
}

std::pair<int64_t, int64_t> target_size(int height, int width, const Preprocessing& preprocessing) {
    const int64_t size = preprocessing.size, shorter = std::min(height, width), longer = std::max(height, width);
    if (preprocessing.size_policy == SizePolicy::refuse && shorter != longer)
        refuse(height, width, " pixels is not square; size_policy 'refuse' takes square images only");
    if (preprocessing.size_policy != SizePolicy::fit) return {size, size};
    const int64_t scaled = size * longer / shorter;
    if (size * scaled > MAX_INPUT_PIXELS)
        refuse(height, width,
               " pixels (height x width) fitted to a shorter side of " + std::to_string(size) + " gives " +
                   std::to_string(size * scaled) + " pixels of input, above the limit of " +
                   std::to_string(MAX_INPUT_PIXELS) + "; use size_policy 'stretch' or cut the image");
    return height <= width ? std::make_pair(size, scaled) : std::make_pair(scaled, size);
}

// The frame's rows, all of which may be read.
Rows rows_of(const Frame& frame) {
    const int channels = is_colour(frame.format) ? 3 : 1;
    const int64_t row = int64_t{frame.width} * channels * (is_deep(frame.format) ? 2 : 1);
    if (frame.pitch < row)
        throw Failure{Code::invalid_argument, "pitch: " + std::to_string(frame.pitch) +
                                                  " bytes from row to row, less "
                                                  "than the " +
                                                  std::to_string(row) + " of a row"};
    const int64_t between = frame.height - 1;
    if (frame.bytes < row || (between && frame.pitch > (frame.bytes - row) / between))
        throw Failure{Code::invalid_argument, "bytes: " + std::to_string(frame.bytes) + " are too few for " +
                                                  std::to_string(frame.height) + " rows of " + std::to_string(row) +
                                                  " bytes, " + std::to_string(frame.pitch) + " apart"};
    if (!frame.data) throw Failure{Code::invalid_argument, "data: a null pointer"};
    return {static_cast<const uint8_t*>(frame.data), frame.pitch, frame.height, frame.width, channels};
}

[[noreturn]] void refuse_depth(const Rows& source, int bit_depth) {
    uint16_t lowest = 0xffff, highest = 0;
    for (int y = 0; y < source.height; y++)
        for (int64_t i = 0; i < int64_t{source.width} * source.channels; i++) {
            uint16_t value;
            memcpy(&value, source.data + y * source.pitch + 2 * i, 2);
            lowest = std::min(lowest, value);
            highest = std::max(highest, value);
        }
    throw Failure{Code::bad_image, "holds values from " + std::to_string(lowest) + " to " + std::to_string(highest) +
                                       "; bit_depth " + std::to_string(bit_depth) + " allows 0 to " +
                                       std::to_string((1 << bit_depth) - 1)};
}

}  // namespace

std::pair<int, int> network_size(int height, int width, const Preprocessing& preprocessing) {
    check_pixel_count(height, width, preprocessing);
    const auto [rows, columns] = target_size(height, width, preprocessing);
    // between the two passes, and for Lanczos' weights of the longer side
    const int64_t memory = 4 * std::max(rows * width, columns * height) + int64_t{48} * std::max(height, width);
    if (memory > RESIZING_BYTES + 12 * int64_t{height} * width)
        refuse(height, width,
               " pixels (height x width) are too thin: resizing them to " + with_size(rows, columns) + " would take " +
                   std::to_string(memory >> 20) + " MiB; cut the image");
    return {static_cast<int>(rows), static_cast<int>(columns)};
}

void network_input(const Frame& frame, const Preprocessing& preprocessing, const spr_operators* operators,
                   Filters& filters, float* pixels) {
    const auto [rows, columns] = network_size(frame.height, frame.width, preprocessing);
    const Rows source = rows_of(frame);
    const int64_t plane = int64_t{rows} * columns;
    if (is_deep(frame.format)) {
        const int top = (1 << preprocessing.bit_depth) - 1;
        if (resize_16_bit(source, top, operators, filters, rows, columns, pixels) > top)
            refuse_depth(source, preprocessing.bit_depth);
    } else {
        resize_8_bit(source, operators, filters, rows, columns, pixels);
    }
    if (is_bgr(frame.format)) std::swap_ranges(pixels, pixels + plane, pixels + 2 * plane);
    if (!is_colour(frame.format))
        for (int channel = 1; channel < 3; channel++) memcpy(pixels + channel * plane, pixels, sizeof(float) * plane);
}

}  // namespace sprfast
