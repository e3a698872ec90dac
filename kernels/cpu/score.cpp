#include "score.h"

#include <math.h>
#include <stdio.h>

#include <algorithm>

#include "mt19937.h"

namespace sprfast {

namespace {

constexpr int BOX_SIZE = 31;                    // places, both sides of the published window
constexpr int LARGEST_BILINEAR = 2 * MAP_SIZE;  // pixels a side, above which a place is a mean by area

// Where one of the 256 places lies between two of `size` pixels.
struct Place {
    int low, high;
    double share;  // of `high`
};

Place place(int index, int size) {
    double centre = (index + 0.5) * (static_cast<double>(size) / MAP_SIZE) - 0.5;
    centre = std::min(std::max(centre, 0.0), static_cast<double>(size - 1));
    const int low = std::min(static_cast<int>(centre), std::max(0, size - 2));
    return {low, std::min(low + 1, size - 1), centre - low};
}

// `values` (size, columns) at the 256 places of the first axis, bilinearly: (256, columns).
std::vector<double> bilinear(const std::vector<double>& values, int size, int64_t columns) {
    std::vector<double> result(MAP_SIZE * columns);
    for (int i = 0; i < MAP_SIZE; i++) {
        const Place at = place(i, size);
        const double *low = &values[at.low * columns], *high = &values[at.high * columns];
        for (int64_t c = 0; c < columns; c++) result[i * columns + c] = low[c] * (1.0 - at.share) + high[c] * at.share;
    }
    return result;
}

// `values` (count, columns) summed along the first axis: (count + 1, columns), the first 0.
std::vector<double> running_sums(const std::vector<double>& values, int64_t columns) {
    std::vector<double> sums(values.size() + columns);
    for (size_t i = 0; i < values.size(); i++) sums[i + columns] = sums[i] + values[i];
    return sums;
}

// `values` (size, columns): the mean of what each of the 256 places covers along the first axis: (256, columns).
std::vector<double> means(const std::vector<double>& values, int size, int64_t columns) {
    const std::vector<double> sums = running_sums(values, columns);
    const double covered = static_cast<double>(size) / MAP_SIZE;
    std::vector<double> up_to((MAP_SIZE + 1) * columns), result(MAP_SIZE * columns);
    for (int i = 0; i <= MAP_SIZE; i++) {
        const double edge = i * covered;
        const int before = static_cast<int>(edge);
        const double *whole = &sums[before * columns], *last = &values[std::min(before, size - 1) * columns];
        for (int64_t c = 0; c < columns; c++) up_to[i * columns + c] = whole[c] + last[c] * (edge - before);
    }
    for (size_t i = 0; i < result.size(); i++) result[i] = (up_to[i + columns] - up_to[i]) / covered;
    return result;
}

// Places to either side of one that its mean takes: those of the published window, or the odd number nearest to
// window·256/size in all.
int reach(int size, int window) {
    if (!window) return BOX_SIZE / 2;
    return std::min(MAP_SIZE / 2 * window / size, MAP_SIZE / 2 - 1);
}

// `values` (size, columns) resampled and averaged along the first axis, by running sums: (256, columns).
std::vector<double> smoothed(const std::vector<double>& values, int size, int64_t columns, int window) {
    const int half = reach(size, window);
    const auto resampled = size > LARGEST_BILINEAR ? means : bilinear;
    const std::vector<double> sums = running_sums(resampled(values, size, columns), columns);
    std::vector<double> result(MAP_SIZE * columns);
    for (int i = 0; i < MAP_SIZE; i++) {
        const double* end = &sums[std::min(i + half + 1, MAP_SIZE) * columns];
        const double* start = &sums[std::max(i - half, 0) * columns];
        for (int64_t c = 0; c < columns; c++) result[i * columns + c] = (end[c] - start[c]) / (2 * half + 1);
    }
    return result;
}

std::vector<double> transposed(const std::vector<double>& values, int64_t rows, int64_t columns) {
    std::vector<double> result(values.size());
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < columns; c++) result[c * rows + r] = values[r * columns + c];
    return result;
}

// NaN where one of them is.
float largest(const float* values, int64_t count) {
    constexpr int LANES = 16;  // side by side, for the compiler's vectors; `count` is a multiple
    float best[LANES];
    std::fill(best, best + LANES, values[0]);
    for (int64_t i = 0; i < count; i += LANES)
        for (int lane = 0; lane < LANES; lane++) {
            const float value = values[i + lane];
            best[lane] = value <= best[lane] || best[lane] != best[lane] ? best[lane] : value;
        }
    for (float value : best) best[0] = value <= best[0] || best[0] != best[0] ? best[0] : value;
    return best[0];
}

std::string with_size(int height, int width) { return std::to_string(height) + "x" + std::to_string(width); }

std::string three_digits(double value) {
    if (isnan(value)) return "nan";
    char text[32];
    snprintf(text, sizeof text, "%.3g", value);
    return text;
}

}  // namespace

std::vector<float> smoothing_matrix(int size, int window) {
    std::vector<float> matrix(static_cast<size_t>(MAP_SIZE) * size);
    std::vector<double> column(size);
    for (int c = 0; c < size; c++) {
        column[c] = 1;
        const std::vector<double> weights = smoothed(column, size, 1, window);
        column[c] = 0;
        for (int i = 0; i < MAP_SIZE; i++) matrix[static_cast<size_t>(i) * size + c] = static_cast<float>(weights[i]);
    }
    return matrix;
}

std::vector<float> anomaly_map(const std::vector<float>& errors, int height, int width, int window) {
    const std::vector<double> exact(errors.begin(), errors.end());
    const std::vector<double> rows = smoothed(exact, height, width, window);
    const std::vector<double> columns = smoothed(transposed(rows, MAP_SIZE, width), width, MAP_SIZE, window);
    const std::vector<double> both = transposed(columns, MAP_SIZE, MAP_SIZE);
    return {both.begin(), both.end()};
}

double score(const Export& exported, const float* errors, int height, int width, const float* map) {
    if (!exported.field) return largest(map, MAP_SIZE * MAP_SIZE);
    const Field& field = *exported.field;
    if (field.height != height || field.width != width)
        throw Failure{Code::bad_image, with_size(height, width) +
                                           " pixels (height x width) at the network's input, the error field was "
                                           "fitted at " +
                                           with_size(field.height, field.width) +
                                           "; calibrate with images of one size, or train with the size policy "
                                           "'stretch'"};
    std::vector<float> relative(field.expected.size());
    for (size_t i = 0; i < relative.size(); i++) relative[i] = errors[i] / field.expected[i];
    const std::vector<float> anomalies = anomaly_map(relative, height, width, exported.window);
    return largest(anomalies.data(), MAP_SIZE * MAP_SIZE);
}

Verdict verdict(double score, const std::optional<double>& threshold) {
    if (!threshold || !isfinite(score)) return Verdict::error;
    return score <= *threshold ? Verdict::pass : Verdict::reject;
}

std::string reason(double score, const std::optional<double>& threshold) {
    if (isnan(score)) return "the score is nan";
    if (isinf(score)) return score > 0 ? "the score is inf" : "the score is -inf";
    return threshold ? "" : "the model has no threshold: run `sprfast calibrate`";
}

std::optional<double> map_value(const Export& exported) {
    if (exported.map_threshold || exported.field) return exported.map_threshold;
    return exported.threshold;
}

void pred_mask(const float* map, double map_value, uint8_t* mask) {
    for (int i = 0; i < MAP_SIZE * MAP_SIZE; i++) mask[i] = !(map[i] <= map_value);  // in double, as the verdict
}

namespace {

// Where one of `size` pixels lies between the seven patches of a side.
Place patch(int index, int size) {
    constexpr int PATCHES = 7;
    double at = size > 1 ? index * ((PATCHES - 1.0) / (size - 1)) : 0.0;
    if (size > 1 && index == size - 1) at = PATCHES - 1;
    const int low = std::min(static_cast<int>(at), PATCHES - 2);
    return {low, low + 1, at - low};
}

double between(double low, double high, double share) { return low * (1.0 - share) + high * share; }

}  // namespace

std::vector<float> probe_image(int height, int width) {
    MersenneTwister random = MersenneTwister::of_seed(0);
    double patches[3][7][7];
    for (auto& channel : patches)
        for (auto& row : channel)
            for (double& value : row) value = -0.8 + (0.8 - -0.8) * random.uniform();
    std::vector<float> image;
    image.reserve(size_t{3} * height * width);
    for (const auto& channel : patches)
        for (int y = 0; y < height; y++) {
            const Place row = patch(y, height);
            double values[7];
            for (int i = 0; i < 7; i++) values[i] = between(channel[row.low][i], channel[row.high][i], row.share);
            for (int x = 0; x < width; x++) {
                const Place column = patch(x, width);
                double value = between(values[column.low], values[column.high], column.share);
                if (y >= height / 3 && x < width / 2) value *= -0.5;
                value += -0.1 + (0.1 - -0.1) * random.uniform();
                image.push_back(static_cast<float>(std::min(std::max(value, -1.0), 1.0)));
            }
        }
    return image;
}

double check_probe(const Export& exported, const float* errors) {
    const auto& probe = exported.probe;
    double difference = 0, size = 0;
    for (size_t i = 0; i < probe.error_map.size(); i++) {
        const double expected = probe.error_map[i], off = errors[i] - expected;
        difference += off * off;
        size += expected * expected;
    }
    const double error = sqrt(difference / size);
    if (!(error <= probe.tolerance))
        throw Failure{Code::internal, "the error map of the probe image is off by " + three_digits(error) +
                                          " (relative RMS, allowed " + three_digits(probe.tolerance) +
                                          "); nothing may be scored with it"};
    return error;
}

}  // namespace sprfast
