// What goes wrong inside the engine: nothing but this and std::bad_alloc is thrown.
#pragma once

#include <string>

namespace sprfast {

enum class Code {
    invalid_argument = 1,
    bad_file = 2,
    bad_image = 3,
    unsupported = 4,
    out_of_memory = 5,
    internal = 6,
};

struct Failure {
    Code code;
    std::string text;  // one sentence that names the file, field or argument
};

}  // namespace sprfast
