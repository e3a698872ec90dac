#include "noise.h"

#include <math.h>

#include "mt19937.h"

namespace sprfast {

namespace {

// Standard normal numbers by Marsaglia's polar method: each pair of points gives two, of which numpy hands out the
// second first.
void normal(MersenneTwister random, int64_t count, float* z) {
    for (int64_t i = 0; i < count; i += 2) {
        double x, y, square;
        do {
            x = 2.0 * random.uniform() - 1.0;
            y = 2.0 * random.uniform() - 1.0;
            square = x * x + y * y;
        } while (square >= 1.0 || square == 0.0);
        double factor = sqrt(-2.0 * log(square) / square);
        z[i] = static_cast<float>(factor * y);
        if (i + 1 < count) z[i + 1] = static_cast<float>(factor * x);
    }
}

}  // namespace

void draws(const Schedule& schedule, int height, int width, uint32_t seed, float* z) {
    const int64_t count = int64_t{3} * height * width;
    const bool paired = schedule.noise == NoiseKind::antithetic;
    for (size_t level = 0; level < schedule.levels.size(); level++)
        for (int k = 0; k < schedule.levels[level].draws; k++, z += count) {
            if (schedule.noise == NoiseKind::none) {
                for (int64_t i = 0; i < count; i++) z[i] = 0;
            } else if (paired && k % 2) {
                for (int64_t i = 0; i < count; i++) z[i] = -z[i - count];
            } else {
                const uint32_t draw = static_cast<uint32_t>(paired ? k / 2 : k);
                normal(MersenneTwister::of_sequence(seed, static_cast<uint32_t>(level), draw), count, z);
                if (schedule.noise == NoiseKind::signs)
                    for (int64_t i = 0; i < count; i++) z[i] = copysignf(1, z[i]);
            }
        }
}

}  // namespace sprfast
