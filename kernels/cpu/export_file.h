// The file of `sprfast export --to plan`, read with every check that the package makes of it.
#pragma once

#include <stdint.h>

#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "failure.h"

namespace sprfast {

// One sigma level: `draws` perturbations at time t, its error map weighted by `weight`.
struct Level {
    double t = 1e-3;
    int draws = 3;
    double weight = 1.0;  // relative; folded into the array `scale`
};

enum class NoiseKind { gaussian, antithetic, signs, none };

struct Schedule {
    std::vector<Level> levels{Level{}};
    NoiseKind noise = NoiseKind::gaussian;

    // Network passes an image, over all levels.
    int draws() const {
        int total = 0;
        for (const Level& level : levels) total += level.draws;
        return total;
    }
};

enum class SizePolicy { fit, stretch, refuse };

// From a frame to the network's input. What the file says of transparency and of files of several pictures does not
// concern frames and is only checked.
struct Preprocessing {
    int size = 192;  // of the shorter side for `fit`, of both sides for the others
    SizePolicy size_policy = SizePolicy::fit;
    int bit_depth = 16;             // significant bits of 16-bit images
    bool exif = true;               // turn a file's image as its EXIF tag says
    int64_t max_pixels = 89478485;  // of the source
};

// What error good images show at each place; error maps are divided by it before the score is taken.
struct Field {
    int height, width;
    std::vector<float> expected;
};

// The error map that the definition has for the probe image of its size, and the relative RMS error that is allowed.
struct Probe {
    int height, width;
    std::vector<float> error_map;
    double tolerance;
};

struct Export {
    int base_width;
    std::string precision;  // of the network: "float32", "bfloat16" or "float16"
    Schedule schedule;
    Preprocessing preprocessing;
    uint32_t noise_seed;
    std::optional<Field> field;           // absent: the score is the maximum of the anomaly map
    std::optional<double> threshold;      // the highest score that passes
    std::optional<double> map_threshold;  // above which a pixel of the anomaly map is marked; absent:
                                          // `threshold`, where there is no field
    int window;                           // of the anomaly map, network pixels; 0: the published one
    int tile;                             // side of the tiles of larger images, network pixels; 0: none
    std::optional<std::pair<int, int>>
        size;                  // of a tile where there are tiles: height and width at the network's input; absent: any
    std::string model_sha256;  // of the weights that the export was made from
    Probe probe;
    std::map<std::string, std::vector<float>> arrays;  // of the folded model, by names such as `down1.first.weight`
};

constexpr int MAX_WINDOW = 4096;

// Throws Failure, whose text begins with `path`, unless it is such a file, whole and of a version that is known.
Export read_export(const std::string& path);

}  // namespace sprfast
