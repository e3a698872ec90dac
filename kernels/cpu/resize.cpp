#include "resize.h"

#include <string.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "lanczos.h"

namespace sprfast {

namespace {

constexpr int STRIP = 16;  // rows that an operator takes at once; rows of its results have a multiple of it

int64_t padded(int64_t count) { return (count + STRIP - 1) / STRIP * STRIP; }

// Whether Pillow begins with the columns.
bool columns_first(const Rows& source, int rows, int columns) {
    return columns != source.width && source.height > rows && source.height - rows > 2 * (source.width - columns);
}

// The 16 rows from y on; of those that are behind the last one the values do not matter.
struct Strip {
    Strip(const Rows& source, int y, int64_t row_bytes, std::vector<uint8_t>& space)
        : data(source.data + y * source.pitch), pitch(source.pitch) {
        if (y + STRIP <= source.height) return;
        space.resize(STRIP * row_bytes);
        for (int row = 0; row < source.height - y; row++)
            memcpy(&space[row * row_bytes], data + row * pitch, row_bytes);
        data = space.data();
        pitch = row_bytes;
    }

    const uint8_t* data;
    int64_t pitch;
};

// A row of planes to its place in each of them.
void spread(const float* row, int channels, int columns, int64_t plane, float* pixels) {
    for (int channel = 0; channel < channels; channel++)
        memcpy(pixels + channel * plane, row + int64_t{channel} * columns, sizeof(float) * columns);
}

// Rows y and y + 1 in pairs, each as one plane of `channels`, which may also be 1 for pixels as they lie.
void pair_up(const Rows& source, int y, int channels, int32_t* pairs) {
    const uint8_t* first = source.data + y * source.pitch;
    const uint8_t* second = y + 1 < source.height ? first + source.pitch : first;
    for (int channel = 0; channel < channels; channel++)
        for (int64_t i = channel; i < int64_t{source.width} * source.channels; i += channels)
            *pairs++ = first[i] | second[i] << 16;
}

// The picture at the wanted height, its rows `pitch` bytes apart.
std::vector<uint8_t> columns_of_8_bit(const Rows& source, const spr_operators* operators, int rows, int64_t pitch) {
    const auto pairs = std::make_unique<int32_t[]>(pitch * ((source.height + 1) / 2));
    for (int y = 0; y < source.height; y += 2) pair_up(source, y, 1, &pairs[y / 2 * pitch]);
    const FixedLanczos filter(source.height, rows);
    const spr_taps taps = filter.taps();
    std::vector<uint8_t> result(rows * pitch);
    for (int y = 0; y < rows; y++) operators->resample_row_8(&taps, y, pairs.get(), pitch, &result[y * pitch]);
    return result;
}

// Pairs of rows of planes at the wanted width, `pitch` apart.
std::unique_ptr<int32_t[]> rows_of_8_bit(const Rows& source, const spr_operators* operators, int columns,
                                         int64_t pitch) {
    auto pairs = std::make_unique<int32_t[]>(pitch * padded(source.height) / 2);
    if (columns == source.width) {
        for (int y = 0; y < source.height; y += 2) pair_up(source, y, source.channels, &pairs[y / 2 * pitch]);
        return pairs;
    }
    const FixedLanczos filter(source.width, columns);
    const spr_taps taps = filter.taps();
    const std::unique_ptr<int32_t[]> space(new int32_t[padded(source.width) * STRIP / 2 * source.channels]);
    std::vector<uint8_t> last;
    for (int y = 0; y < source.height; y += STRIP) {
        const Strip strip(source, y, int64_t{source.width} * source.channels, last);
        operators->resample_strip_8(&taps, strip.data, strip.pitch, source.width, source.channels, space.get(),
                                    &pairs[y / 2 * pitch], pitch);
    }
    return pairs;
}

}  // namespace

void resize_8_bit(const Rows& given, const spr_operators* operators, int rows, int columns, float* pixels) {
    Rows source = given;
    std::vector<uint8_t> shrunk;
    if (columns_first(given, rows, columns)) {
        source.pitch = padded(int64_t{given.width} * given.channels);
        source.height = rows;
        shrunk = columns_of_8_bit(given, operators, rows, source.pitch);
        source.data = shrunk.data();
    }
    const int64_t pitch = padded(int64_t{columns} * source.channels);
    const std::unique_ptr<int32_t[]> pairs = rows_of_8_bit(source, operators, columns, pitch);
    const FixedLanczos filter(source.height, rows);
    const spr_taps taps = filter.taps();
    std::vector<uint8_t> whole(pitch);
    std::vector<float> row(pitch);
    for (int y = 0; y < rows; y++) {
        if (rows == source.height)
            for (int64_t i = 0; i < pitch; i++) whole[i] = static_cast<uint8_t>(pairs[y / 2 * pitch + i] >> y % 2 * 16);
        else
            operators->resample_row_8(&taps, y, pairs.get(), pitch, whole.data());
        for (int64_t i = 0; i < pitch; i++) row[i] = static_cast<float>(whole[i]) / 255.0f * 2.0f - 1.0f;
        spread(row.data(), source.channels, columns, int64_t{rows} * columns, pixels + int64_t{y} * columns);
    }
}

namespace {

// Rows of numbers in [0, 1], `pitch` apart.
struct Numbers {
    int height;
    int64_t pitch;
    std::unique_ptr<float[]> values;
};

// The picture as numbers, its pixels as they lie.
Numbers scaled(const Rows& source, int top) {
    const int64_t length = int64_t{source.width} * source.channels;
    Numbers result{source.height, padded(length), std::make_unique<float[]>(padded(length) * source.height)};
    for (int y = 0; y < source.height; y++)
        for (int64_t i = 0; i < length; i++) {
            uint16_t value;
            memcpy(&value, source.data + y * source.pitch + 2 * i, 2);
            result.values[y * result.pitch + i] = static_cast<float>(value) / static_cast<float>(top);
        }
    return result;
}

// At the wanted height.
Numbers columns_of_numbers(const Numbers& source, const spr_operators* operators, int rows) {
    Numbers result{rows, source.pitch, std::make_unique<float[]>(source.pitch * rows)};
    const Lanczos filter(source.height, rows);
    const spr_weights weights = filter.weights();
    for (int y = 0; y < rows; y++)
        operators->resample_row_16(&weights, y, source.values.get(), source.pitch, &result.values[y * source.pitch]);
    return result;
}

// What turn_strip_16 does, of numbers.
void turn(const Numbers& source, int y, int width, int channels, float* turned) {
    for (int row = 0; row < std::min(STRIP, source.height - y); row++)
        for (int channel = 0; channel < channels; channel++)
            for (int x = 0; x < width; x++)
                turned[(int64_t{channel} * width + x) * STRIP + row] =
                    source.values[(y + row) * source.pitch + int64_t{x} * channels + channel];
}

// Its inverse, to rows of planes.
void turn_back(const float* turned, int width, int channels, float* planes, int64_t pitch) {
    for (int row = 0; row < STRIP; row++)
        for (int64_t i = 0; i < int64_t{channels} * width; i++) planes[row * pitch + i] = turned[i * STRIP + row];
}

// Rows of planes at the wanted width; at the wanted height too, where the columns come first.
Numbers rows_of_numbers(const Rows& source, int top, const spr_operators* operators, int rows, int columns) {
    Numbers shrunk{source.height, 0, nullptr};
    if (columns_first(source, rows, columns)) shrunk = columns_of_numbers(scaled(source, top), operators, rows);
    const int width = source.width, channels = source.channels;
    const int64_t pitch = padded(int64_t{columns} * channels);
    Numbers result{shrunk.height, pitch, std::make_unique<float[]>(pitch * padded(shrunk.height))};
    const Lanczos filter(width, columns);
    const spr_weights weights = filter.weights();
    std::vector<float> turned(int64_t{width} * channels * STRIP);
    std::vector<uint8_t> last;
    for (int y = 0; y < result.height; y += STRIP) {
        if (shrunk.values) {
            turn(shrunk, y, width, channels, turned.data());
        } else {
            const Strip strip(source, y, int64_t{2} * width * channels, last);
            operators->turn_strip_16(strip.data, strip.pitch, width, channels, static_cast<float>(top), turned.data());
        }
        if (columns == width)
            turn_back(turned.data(), width, channels, &result.values[y * pitch], pitch);
        else
            operators->resample_strip_16(&weights, turned.data(), width, channels, &result.values[y * pitch], pitch);
    }
    return result;
}

}  // namespace

void resize_16_bit(const Rows& source, int top, const spr_operators* operators, int rows, int columns, float* pixels) {
    Numbers planes = rows_of_numbers(source, top, operators, rows, columns);
    if (planes.height != rows) planes = columns_of_numbers(planes, operators, rows);
    for (int y = 0; y < rows; y++) {
        float* row = &planes.values[y * planes.pitch];
        for (int64_t i = 0; i < planes.pitch; i++) row[i] = std::min(std::max(row[i], 0.0f), 1.0f) * 2.0f - 1.0f;
        spread(row, source.channels, columns, int64_t{rows} * columns, pixels + int64_t{y} * columns);
    }
}

}  // namespace sprfast
