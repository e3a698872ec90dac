#include "resize.h"

#include <string.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "memory.h"

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
std::vector<uint8_t> columns_of_8_bit(const Rows& source, const spr_operators* operators, Filters& filters, int rows,
                                      int64_t pitch) {
    const auto pairs = std::make_unique<int32_t[]>(pitch * ((source.height + 1) / 2));
    for (int y = 0; y < source.height; y += 2) pair_up(source, y, 1, &pairs[y / 2 * pitch]);
    const std::shared_ptr<const FixedLanczos> filter = filters.fixed(source.height, rows);
    const spr_taps taps = filter->taps();
    std::vector<uint8_t> result(rows * pitch);
    for (int y = 0; y < rows; y++) operators->resample_row_8(&taps, y, pairs.get(), pitch, &result[y * pitch]);
    return result;
}

// Pairs of rows of planes at the wanted width, `pitch` apart.
std::unique_ptr<int32_t[]> rows_of_8_bit(const Rows& source, const spr_operators* operators, Filters& filters,
                                         int columns, int64_t pitch) {
    auto pairs = std::make_unique<int32_t[]>(pitch * padded(source.height) / 2);
    if (columns == source.width) {
        for (int y = 0; y < source.height; y += 2) pair_up(source, y, source.channels, &pairs[y / 2 * pitch]);
        return pairs;
    }
    const std::shared_ptr<const FixedLanczos> filter = filters.fixed(source.width, columns);
    const spr_taps taps = filter->taps();
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

void resize_8_bit(const Rows& given, const spr_operators* operators, Filters& filters, int rows, int columns,
                  float* pixels) {
    Rows source = given;
    std::vector<uint8_t> shrunk;
    if (columns_first(given, rows, columns)) {
        source.pitch = padded(int64_t{given.width} * given.channels);
        source.height = rows;
        shrunk = columns_of_8_bit(given, operators, filters, rows, source.pitch);
        source.data = shrunk.data();
    }
    const int64_t pitch = padded(int64_t{columns} * source.channels);
    const std::unique_ptr<int32_t[]> pairs = rows_of_8_bit(source, operators, filters, columns, pitch);
    const std::shared_ptr<const FixedLanczos> filter = filters.fixed(source.height, rows);
    const spr_taps taps = filter->taps();
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

// One pass over numbers in double. They come in order, `lanes` of each place of a side, of each channel alone.
class Pass {
public:
    Pass(int size, int outputs, int64_t lanes, int channels, const spr_operators* operators, Filters& filters)
        : operators_(operators),
          filter_(filters.exact(size, outputs)),
          copies_(size == outputs),
          lanes_(lanes),
          done_(channels) {
        channel_ = int64_t{filter_->weights().overlap} * lanes;
        sums_ = floats(2 * channels * channel_);
    }

    // Places [first, first + count). result: lane l of output o at o·output_step + l·lane_step.
    void add(int channel, const float* values, int first, int count, float* result, int64_t output_step,
             int64_t lane_step) {
        if (!copies_) {
            const spr_weights weights = filter_->weights();
            double* sums = reinterpret_cast<double*>(sums_.get()) + channel * channel_;
            done_[channel] = operators_->resample_16(&weights, values, first, count, first ? done_[channel] : 0, lanes_,
                                                     sums, result, output_step, lane_step);
            return;
        }
        for (int place = 0; place < count; place++)
            for (int64_t lane = 0; lane < lanes_; lane++)
                result[(first + place) * output_step + lane * lane_step] = values[place * lanes_ + lane];
    }

private:
    const spr_operators* operators_;
    const std::shared_ptr<const Lanczos> filter_;
    const bool copies_;  // a pass is left out where its side keeps its size
    const int64_t lanes_;
    int64_t channel_;  // sums of one
    Floats sums_;      // doubles
    std::vector<int32_t> done_;
};

// Columns first: the picture at the wanted height, its pixels as they lie, rows `pitch` apart. Adds to `bits`.
Floats columns_of_16_bit(const Rows& source, int top, const spr_operators* operators, Filters& filters, int rows,
                         int64_t pitch, uint16_t& bits) {
    Floats result = floats(rows * pitch);
    const Floats strip = floats(STRIP * pitch);
    std::fill_n(strip.get(), STRIP * pitch, 0.0f);
    Pass down(source.height, rows, pitch, 1, operators, filters);
    for (int y = 0; y < source.height; y += STRIP) {
        const int count = std::min(STRIP, source.height - y);
        for (int row = 0; row < count; row++)
            for (int64_t i = 0; i < int64_t{source.width} * source.channels; i++) {
                uint16_t value;
                memcpy(&value, source.data + (y + row) * source.pitch + 2 * i, 2);
                bits |= value;
                strip[row * pitch + i] = static_cast<float>(value) / static_cast<float>(top);
            }
        down.add(0, strip.get(), y, count, result.get(), pitch, 1);
    }
    return result;
}

// What turn_strip_16 does, of numbers.
void turn(const float* rows, int64_t pitch, int count, int width, int channels, float* turned) {
    for (int row = 0; row < count; row++)
        for (int channel = 0; channel < channels; channel++)
            for (int x = 0; x < width; x++)
                turned[(channel * SPR_PIECE + x) * STRIP + row] = rows[row * pitch + int64_t{x} * channels + channel];
}

}  // namespace

uint16_t resize_16_bit(const Rows& source, int top, const spr_operators* operators, Filters& filters, int rows,
                       int columns, float* pixels) {
    const int width = source.width, channels = source.channels;
    const int64_t between = padded(int64_t{width} * channels), pitch = padded(int64_t{columns} * channels);
    uint16_t bits = 0;
    Floats shrunk;
    if (columns_first(source, rows, columns))
        shrunk = columns_of_16_bit(source, top, operators, filters, rows, between, bits);
    const int height = shrunk ? rows : source.height;
    Pass across(width, columns, STRIP, channels, operators, filters), down(height, rows, pitch, 1, operators, filters);
    const Floats turned = floats(SPR_PIECE * channels * STRIP), strip = floats(STRIP * pitch),
                 planes = floats(rows * pitch);
    std::fill_n(turned.get(), SPR_PIECE * channels * STRIP, 0.0f);
    std::fill_n(strip.get(), STRIP * pitch, 0.0f);
    std::vector<uint8_t> last;
    for (int y = 0; y < height; y += STRIP) {
        const int count = std::min(STRIP, height - y);
        const Strip given(source, y, int64_t{2} * width * channels, last);
        for (int x = 0; x < width; x += SPR_PIECE) {
            const int wide = std::min(SPR_PIECE, width - x);
            if (shrunk)
                turn(&shrunk[y * between + int64_t{x} * channels], between, count, wide, channels, turned.get());
            else
                bits |= operators->turn_strip_16(given.data + int64_t{2} * x * channels, given.pitch, wide, channels,
                                                 static_cast<float>(top), turned.get());
            for (int channel = 0; channel < channels; channel++)
                across.add(channel, &turned[channel * SPR_PIECE * STRIP], x, wide, &strip[int64_t{channel} * columns],
                           1, pitch);
        }
        down.add(0, strip.get(), y, count, planes.get(), pitch, 1);
    }
    for (int y = 0; y < rows; y++) {
        float* row = &planes[y * pitch];
        for (int64_t i = 0; i < pitch; i++) row[i] = std::min(std::max(row[i], 0.0f), 1.0f) * 2.0f - 1.0f;
        spread(row, channels, columns, int64_t{rows} * columns, pixels + int64_t{y} * columns);
    }
    return bits;
}

}  // namespace sprfast
