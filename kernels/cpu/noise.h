// Frozen noise: the draws of every sigma level, a function of the seed alone.
//
// Bit for bit the draws of sprfast/method/noise.py, whose generator is numpy's legacy one: MT19937, seeded by a
// SeedSequence of (seed, level, draw), and normal numbers by Marsaglia's polar method.
#pragma once

#include <stdint.h>

#include "export_file.h"

namespace sprfast {

// The draws of all levels, one level after the other; z: (schedule.draws(), 3, height, width). Draw k of level l
// depends on (seed, l, k, height, width) only. Antithetic draws 2j and 2j + 1 are z and -z.
void draws(const Schedule& schedule, int height, int width, uint32_t seed, float* z);

}  // namespace sprfast
