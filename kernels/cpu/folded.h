// The arrays of a folded model.
#pragma once

#include <stdint.h>

#include <map>
#include <string>
#include <vector>

namespace sprfast {

// Name and shape of each, for a network of this width (in channels) and this number of passes an image.
std::map<std::string, std::vector<int64_t>> folded_shapes(int64_t base_width, int64_t draws);

}  // namespace sprfast
