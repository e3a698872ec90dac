// From error map and anomaly map to a score, a verdict and a mask, and the proof that the maps are right; bit for bit
// as in sprfast/method and sprfast/formats/export_metadata.py.
#pragma once

#include <stdint.h>

#include <optional>
#include <string>
#include <vector>

#include "export_file.h"

namespace sprfast {

constexpr int MAP_SIZE = 256;  // pixels, both sides of an anomaly map

// (256, size): resampling and the box filter behind it, as one matrix of the anomaly map. window: of the filter,
// network pixels; 0: the published one.
std::vector<float> smoothing_matrix(int size, int window);

// (256, 256) of errors (height, width), by running sums; window: as of `smoothing_matrix`.
std::vector<float> anomaly_map(const std::vector<float>& errors, int height, int width, int window);

// The maximum of the anomaly map (256, 256), or with an error field that of the smoothed map of errors (height, width)
// divided by the field; NaN where one of them is. Throws Failure where the errors are not of the field's size.
double score(const Export& exported, const float* errors, int height, int width, const float* map);

enum class Verdict { pass, reject, error };

// PASS for a finite score up to the threshold, REJECT above it, ERROR without a threshold or a finite score.
Verdict verdict(double score, const std::optional<double>& threshold);

// Why a verdict is ERROR, in one sentence; empty for any other.
std::string reason(double score, const std::optional<double>& threshold);

// Above which a pixel of the anomaly map is marked: the map threshold, else the threshold where there is no error
// field.
std::optional<double> map_value(const Export& exported);

// mask: (256, 256), 1 where the map is above `map_value` or NaN, else 0.
void pred_mask(const float* map, double map_value, uint8_t* mask);

// (3, height, width) in [-1, 1]: smooth patches, an edge and fine noise, always the same.
std::vector<float> probe_image(int height, int width);

// The relative RMS error of the probe image's error map (of the probe's height and width) against the definition's.
// Throws Failure where it is beyond the export's tolerance or not a number.
double check_probe(const Export& exported, const float* errors);

}  // namespace sprfast
