#include "resize.h"

#include <math.h>
#include <string.h>

#include <algorithm>
#include <memory>

namespace sprfast {

namespace {

constexpr int BAND = 16;         // rows of 8 bits that an operator takes at once
constexpr int WEIGHT_BITS = 22;  // behind the point, of a weight for 8 bits
constexpr int LOW_BITS = 12;     // of a weight, in its lower part
constexpr int LANES = 8;         // of 16-bit pixels, which are summed beside each other

int64_t padded(int64_t count, int64_t multiple) { return (count + multiple - 1) / multiple * multiple; }

double sinc(double x) {
    if (x == 0.0) return 1.0;
    x *= M_PI;
    return sin(x) / x;
}

double lanczos(double x) { return x >= -3.0 && x < 3.0 ? sinc(x) * sinc(x / 3) : 0.0; }

}  // namespace

Lanczos::Lanczos(int size, int outputs) : first_(outputs), count_(outputs) {
    const double scale = static_cast<double>(size) / outputs, stretch = std::max(scale, 1.0);
    const double support = 3.0 * stretch;
    stride_ = static_cast<int>(ceil(support)) * 2 + 1;
    weights_.resize(static_cast<size_t>(outputs) * stride_);
    for (int output = 0; output < outputs; output++) {
        const double centre = (output + 0.5) * scale;
        const int first = std::max(0, static_cast<int>(centre - support + 0.5));
        const int count = std::min(size, static_cast<int>(centre + support + 0.5)) - first;
        double* weights = &weights_[static_cast<size_t>(output) * stride_];
        double sum = 0.0;
        for (int i = 0; i < count; i++) sum += weights[i] = lanczos((i + first - centre + 0.5) * (1.0 / stretch));
        for (int i = 0; i < count; i++)
            if (sum != 0.0) weights[i] /= sum;
        first_[output] = first;
        count_[output] = count;
    }
}

namespace {

// The weights as spr_taps has them.
class FixedPoint {
public:
    explicit FixedPoint(const Lanczos& filter)
        : stride_(filter.most() / 2 + 1), first_(filter.outputs()), count_(filter.outputs()) {
        low_.resize(static_cast<size_t>(filter.outputs()) * stride_);
        high_.resize(low_.size());
        for (int output = 0; output < filter.outputs(); output++) {
            const int first = filter.first(output), count = filter.count(output), odd = first % 2;
            first_[output] = first / 2;
            count_[output] = (odd + count + 1) / 2;
            uint32_t *low = &low_[static_cast<size_t>(output) * stride_], *high = &high_[low - low_.data()];
            for (int i = 0; i < count; i++) {
                const double weight = filter.weights(output)[i] * (1 << WEIGHT_BITS);
                const int32_t whole = static_cast<int32_t>(weight < 0 ? weight - 0.5 : weight + 0.5);
                const int half = (odd + i) % 2 * 16;
                low[(odd + i) / 2] |= (whole & ((1u << LOW_BITS) - 1)) << half;
                high[(odd + i) / 2] |= (static_cast<uint32_t>(whole >> LOW_BITS) & 0xffffu) << half;
            }
        }
    }

    spr_taps taps() const {
        return {static_cast<int32_t>(first_.size()), stride_, first_.data(), count_.data(), low_.data(), high_.data()};
    }

private:
    int32_t stride_;
    std::vector<int32_t> first_, count_;
    std::vector<uint32_t> low_, high_;
};

// Pairs of rows, each row one plane of columns after the other.
struct Pairs {
    int64_t pitch;
    std::unique_ptr<int32_t[]> values;
};

void pair_up(const Rows& source, int y, int32_t* pairs) {
    const uint8_t* first = source.data + y * source.pitch;
    const uint8_t* second = y + 1 < source.height ? first + source.pitch : first;
    for (int channel = 0; channel < source.channels; channel++)
        for (int x = 0; x < source.width; x++) {
            const int64_t at = int64_t{x} * source.channels + channel;
            *pairs++ = first[at] | second[at] << 16;
        }
}

Pairs along_rows(const Rows& source, const spr_operators* operators, int columns) {
    const int64_t pitch = padded(int64_t{columns} * source.channels, BAND);
    Pairs pairs{pitch, std::make_unique<int32_t[]>(pitch * padded(source.height, BAND) / 2)};
    if (columns == source.width) {
        for (int y = 0; y < source.height; y += 2) pair_up(source, y, &pairs.values[y / 2 * pitch]);
        return pairs;
    }
    const FixedPoint weights(Lanczos(source.width, columns));
    const spr_taps taps = weights.taps();
    const std::unique_ptr<int32_t[]> space(new int32_t[padded(source.width, BAND) * BAND / 2 * source.channels]);
    const int whole = source.height / BAND * BAND;
    for (int y = 0; y < whole; y += BAND)
        operators->resample_band(&taps, source.data + y * source.pitch, source.pitch, source.width, source.channels,
                                 space.get(), &pairs.values[y / 2 * pitch], pitch);
    if (whole < source.height) {
        const int64_t row = int64_t{source.width} * source.channels;
        std::vector<uint8_t> rest(BAND * row);
        for (int y = whole; y < source.height; y++)
            memcpy(&rest[(y - whole) * row], source.data + y * source.pitch, row);
        operators->resample_band(&taps, rest.data(), row, source.width, source.channels, space.get(),
                                 &pairs.values[whole / 2 * pitch], pitch);
    }
    return pairs;
}

// A row of planes to its place in each of them.
void spread(const float* row, int channels, int columns, int64_t plane, float* pixels) {
    for (int channel = 0; channel < channels; channel++)
        memcpy(pixels + channel * plane, row + int64_t{channel} * columns, sizeof(float) * columns);
}

}  // namespace

void resize_8_bit(const Rows& source, const spr_operators* operators, int rows, int columns, float* pixels) {
    const Pairs pairs = along_rows(source, operators, columns);
    std::vector<float> row(pairs.pitch);
    const int64_t plane = int64_t{rows} * columns;
    if (rows == source.height) {
        for (int y = 0; y < rows; y++) {
            const int32_t* values = &pairs.values[y / 2 * pairs.pitch];
            for (int64_t i = 0; i < pairs.pitch; i++)
                row[i] = static_cast<float>(values[i] >> y % 2 * 16 & 0xff) / 255.0f * 2.0f - 1.0f;
            spread(row.data(), source.channels, columns, plane, pixels + int64_t{y} * columns);
        }
        return;
    }
    const FixedPoint weights(Lanczos(source.height, rows));
    const spr_taps taps = weights.taps();
    for (int y = 0; y < rows; y++) {
        operators->resample_row(&taps, y, pairs.values.get(), pairs.pitch, row.data());
        spread(row.data(), source.channels, columns, plane, pixels + int64_t{y} * columns);
    }
}

namespace {

// A row of 16 bits as numbers in [0, 1], interleaved as it is.
void scaled(const Rows& source, int y, int top, float* row) {
    const uint8_t* values = source.data + y * source.pitch;
    for (int64_t i = 0; i < int64_t{source.width} * source.channels; i++) {
        uint16_t value;
        memcpy(&value, values + 2 * i, 2);
        row[i] = static_cast<float>(value) / static_cast<float>(top);
    }
}

// The weighted sum of values for every lane. values: the first one's, `pitch` to the next.
template <typename Value>
inline void weighted(const Lanczos& filter, int output, const Value* values, int64_t pitch, float result[LANES]) {
    const double* weights = filter.weights(output);
    double sums[LANES] = {};
    values += filter.first(output) * pitch;
    for (int i = 0; i < filter.count(output); i++, values += pitch)
        for (int lane = 0; lane < LANES; lane++) sums[lane] += values[lane] * weights[i];
    for (int lane = 0; lane < LANES; lane++) result[lane] = static_cast<float>(sums[lane]);
}

// A band of rows, resampled along the rows, to rows of planes.
void band_along_rows(const Lanczos& filter, const Rows& source, int y, int top, double* turned, float* row,
                     float* planes, int64_t pitch) {
    const int band = std::min(LANES, source.height - y);
    for (int r = 0; r < band; r++) {
        scaled(source, y + r, top, row);
        for (int channel = 0; channel < source.channels; channel++)
            for (int x = 0; x < source.width; x++)
                turned[(int64_t{channel} * source.width + x) * LANES + r] = row[int64_t{x} * source.channels + channel];
    }
    for (int channel = 0; channel < source.channels; channel++)
        for (int output = 0; output < filter.outputs(); output++) {
            float sums[LANES];
            weighted(filter, output, turned + int64_t{channel} * source.width * LANES, LANES, sums);
            for (int r = 0; r < band; r++) planes[r * pitch + int64_t{channel} * filter.outputs() + output] = sums[r];
        }
}

// Rows of planes at the wanted width.
std::unique_ptr<float[]> along_rows(const Rows& source, int top, int columns, int64_t pitch) {
    auto planes = std::make_unique<float[]>(pitch * source.height);
    std::vector<float> row(int64_t{source.width} * source.channels);
    if (columns == source.width) {
        for (int y = 0; y < source.height; y++) {
            scaled(source, y, top, row.data());
            for (int channel = 0; channel < source.channels; channel++)
                for (int x = 0; x < columns; x++)
                    planes[y * pitch + int64_t{channel} * columns + x] = row[int64_t{x} * source.channels + channel];
        }
        return planes;
    }
    const Lanczos filter(source.width, columns);
    std::vector<double> turned(row.size() * LANES);
    for (int y = 0; y < source.height; y += LANES)
        band_along_rows(filter, source, y, top, turned.data(), row.data(), &planes[y * pitch], pitch);
    return planes;
}

}  // namespace

void resize_16_bit(const Rows& source, int top, int rows, int columns, float* pixels) {
    const int64_t pitch = padded(int64_t{columns} * source.channels, LANES), plane = int64_t{rows} * columns;
    const std::unique_ptr<float[]> planes = along_rows(source, top, columns, pitch);
    const Lanczos filter(source.height, rows);
    std::vector<float> row(pitch);
    for (int y = 0; y < rows; y++) {
        if (rows == source.height)
            memcpy(row.data(), &planes[y * pitch], sizeof(float) * pitch);
        else
            for (int64_t lane = 0; lane < pitch; lane += LANES)
                weighted(filter, y, planes.get() + lane, pitch, &row[lane]);
        for (float& value : row) value = std::min(std::max(value, 0.0f), 1.0f) * 2.0f - 1.0f;
        spread(row.data(), source.channels, columns, plane, pixels + int64_t{y} * columns);
    }
}

}  // namespace sprfast
