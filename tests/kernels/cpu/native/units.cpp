// C functions over the engine's units that tests call through ctypes. Each returns 0, or the code of the failure, whose
// text it writes.
#include <stdio.h>
#include <string.h>

#include "interface.h"
#include "noise.h"
#include "pixels.h"
#include "resample_16_bit.h"
#include "resample_8_bit.h"
#include "score.h"

using namespace sprfast;

namespace {

template <typename Work> int guarded(char* text, Work work) {
    try {
        work();
    } catch (const Failure& failure) {
        snprintf(text, 400, "%s", failure.text.c_str());
        return static_cast<int>(failure.code);
    }
    return 0;
}

Preprocessing preprocessing_of(int size, int policy, int bit_depth, int64_t max_pixels) {
    Preprocessing result;
    result.size = size;
    result.size_policy = static_cast<SizePolicy>(policy);
    result.bit_depth = bit_depth;
    result.max_pixels = max_pixels;
    return result;
}

Export export_of(const float* field, int height, int width, const double* threshold, const double* map_threshold) {
    Export result{};
    if (field) result.field = Field{height, width, std::vector<float>(field, field + size_t(height) * width)};
    if (threshold) result.threshold = *threshold;
    if (map_threshold) result.map_threshold = *map_threshold;
    return result;
}

}  // namespace

extern "C" {

void unit_draws(int levels, const int* counts, int noise, int height, int width, uint32_t seed, float* z) {
    Schedule schedule{std::vector<Level>(levels), static_cast<NoiseKind>(noise)};
    for (int i = 0; i < levels; i++) schedule.levels[i].draws = counts[i];
    draws(schedule, height, width, seed, z);
}

int unit_network_size(int height, int width, int size, int policy, int64_t max_pixels, int* rows, int* columns,
                      char* text) {
    return guarded(text, [&] {
        const auto result = network_size(height, width, preprocessing_of(size, policy, 16, max_pixels));
        *rows = result.first;
        *columns = result.second;
    });
}

// operators: null for those that are compiled with this.
int unit_network_input(const void* data, int64_t bytes, int height, int width, int64_t pitch, int format, int size,
                       int policy, int bit_depth, int64_t max_pixels, const spr_operators* operators, float* pixels,
                       char* text) {
    return guarded(text, [&] {
        spr_operators own{};
        own.resample_strip_8 = resample_strip_8;
        own.resample_row_8 = resample_row_8;
        own.turn_strip_16 = turn_strip_16;
        own.resample_16 = resample_16;
        static Filters filters;  // of all calls, as an engine has them
        network_input({data, bytes, height, width, pitch, static_cast<PixelFormat>(format)},
                      preprocessing_of(size, policy, bit_depth, max_pixels), operators ? operators : &own, filters,
                      pixels);
    });
}

void unit_smoothing_matrix(int size, int window, float* matrix) {
    const std::vector<float> result = smoothing_matrix(size, window);
    memcpy(matrix, result.data(), sizeof(float) * result.size());
}

int unit_score(const float* field, int field_height, int field_width, int window, const float* errors, int height,
               int width, const float* map, double* result, char* text) {
    return guarded(text, [&] {
        Export exported = export_of(field, field_height, field_width, nullptr, nullptr);
        exported.window = window;
        *result = score(exported, errors, height, width, map);
    });
}

int unit_verdict(double score, const double* threshold, char* text) {
    const std::optional<double> given = threshold ? std::optional<double>(*threshold) : std::nullopt;
    snprintf(text, 400, "%s", reason(score, given).c_str());
    return static_cast<int>(verdict(score, given));
}

// Whether there is a value above which pixels are marked; if so the mask.
int unit_pred_mask(const float* field, const double* threshold, const double* map_threshold, const float* map,
                   uint8_t* mask) {
    const std::optional<double> value = map_value(export_of(field, 1, 1, threshold, map_threshold));
    if (value) pred_mask(map, *value, mask);
    return value.has_value();
}

void unit_probe_image(int height, int width, float* image) {
    const std::vector<float> result = probe_image(height, width);
    memcpy(image, result.data(), sizeof(float) * result.size());
}

int unit_check_probe(const float* expected, const float* errors, int count, double tolerance, double* error,
                     char* text) {
    return guarded(text, [&] {
        Export exported{};
        exported.probe = {1, count, std::vector<float>(expected, expected + count), tolerance};
        *error = check_probe(exported, errors);
    });
}
}
