// The shapes of folded models whose networks are narrower than any that the package takes, so that their files are
// small: in place of folded.cpp.
#define folded_shapes shapes_of_width
#include "folded.cpp"
#undef folded_shapes

extern "C" {
__attribute__((visibility("default"))) int64_t narrowing = 1;  // what base widths are divided by
}

namespace sprfast {

std::map<std::string, std::vector<int64_t>> folded_shapes(int64_t base_width, int64_t draws) {
    return shapes_of_width(base_width / narrowing, draws);
}

}  // namespace sprfast
